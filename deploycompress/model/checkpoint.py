"""A model in a folder: ``model.safetensors`` and ``architecture.json``, without pickles."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from deploycompress import __version__
from deploycompress.artifact import write_json
from deploycompress.config.base import StrictModel
from deploycompress.contracts import Model
from deploycompress.errors import DeployCompressError, StageFailed
from deploycompress.model.architecture import Architecture, describe, named_tensors, type_name
from deploycompress.model.assembly import edit, put_tensors
from deploycompress.model.build_name import build_of
from deploycompress.model.lowrank import find_factors, put_factors
from deploycompress.model.source import seeded
from deploycompress.model.sparse import mark_sparse, sparse_weights
from deploycompress.model.weights import first_nonfinite
from deploycompress.writing import saving

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"
LARGEST_JSON = 64 * 2**20  # bytes
PROBE_SAMPLES = 2
PROBE_VALUES = 64  # of each output
TOLERANCE = 1e-4  # of max|y|: another machine's float32 kernels round otherwise
COARSE_TOLERANCE = 3e-2  # float16 and bfloat16

Number = Annotated[float, Field(allow_inf_nan=False)]


class ProbeOutput(StrictModel):
    """Some values of one output, evenly spread over it, and the largest magnitude in the whole of it."""

    shape: tuple[int, ...] = Field(max_length=16)
    largest: Number
    values: tuple[Number, ...] = Field(max_length=PROBE_VALUES)


class Probe(StrictModel):
    """What the model gives on ``Model.example(samples)``; proves that it was put together again."""

    samples: Annotated[int, Field(ge=1, le=64)]
    tolerance: Annotated[float, Field(gt=0, le=0.1)]  # of each output's largest magnitude
    outputs: dict[str, ProbeOutput] = Field(min_length=1)


class Document(StrictModel):
    """architecture.json."""

    schema_: Literal[1] = Field(alias="schema")
    model: str  # type of the root, for the reader
    build: str = ""  # the name of another network than the pipeline's own
    architecture: Architecture
    probe: Probe
    sparse: tuple[str, ...] = ()  # parameters whose zeros are kept in training
    versions: dict[str, str] = {}


# ---------------------------------------------------------------- saving


def save(module: nn.Module, folder: Path, model: Model) -> None:
    """Write ``module`` to ``folder``, which is made.

    Raises StageFailed when a tensor or the probe output is not finite, and when the module differs from a
    fresh ``model.build()`` in what tensors and sizes cannot describe.
    """
    bad = first_nonfinite((name, tensor) for name, tensor, _ in named_tensors(module))
    if bad is not None:
        raise StageFailed(f"the model is not kept: {bad}")
    build = build_of(module)
    fresh = (model.named(build) if build else model).build()
    probe = _probe(_on_host(module), model)
    factors = find_factors(module, fresh)
    put_factors(fresh, factors)
    _probe(fresh, model)  # modules that remember a shape when they run then do so on both sides
    architecture = describe(module, fresh, factors)
    document = Document(
        schema=1,
        model=type_name(module),
        build=build,
        architecture=architecture,
        probe=probe,
        sparse=sparse_weights(module),
        versions={"deploycompress": __version__, "torch": torch.__version__},
    )
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor, _ in named_tensors(module)
        if name in architecture.tensors
    }
    with saving(folder / WEIGHTS):
        save_file(kept, folder / WEIGHTS)
    write_json(folder / ARCHITECTURE, document.model_dump(mode="json", by_alias=True))


def _on_host(module: nn.Module) -> nn.Module:
    """An evaluation-mode copy on the CPU, where every machine can check the probe."""
    return copy.deepcopy(module).cpu().eval()


def _probe(module: nn.Module, model: Model) -> Probe:
    outputs = _probe_outputs(module, model, PROBE_SAMPLES)
    coarse = any(t.dtype in (torch.float16, torch.bfloat16) for t in module.parameters())
    return Probe(
        samples=PROBE_SAMPLES,
        tolerance=COARSE_TOLERANCE if coarse else TOLERANCE,
        outputs={
            name: ProbeOutput(
                shape=values.shape,
                largest=float(np.abs(values).max(initial=0.0)),
                values=tuple(float(v) for v in _spread(values)),
            )
            for name, values in outputs.items()
        },
    )


def _probe_outputs(module: nn.Module, model: Model, samples: int) -> dict[str, np.ndarray]:
    try:
        with torch.no_grad(), seeded(0):
            raw = model.call(module, model.example(samples))
    except DeployCompressError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise StageFailed(
            f"the forward pass on random inputs failed: {type(error).__name__}: {first}; check model.inputs"
        ) from error
    outputs = {name: tensor.double().numpy() for name, tensor in raw.items()}
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise StageFailed(f"output {name} has NaN or infinite values on random inputs")
    return outputs


def _spread(values: np.ndarray) -> np.ndarray:
    flat = values.ravel()
    places = np.linspace(0, flat.size - 1, min(PROBE_VALUES, flat.size)).round().astype(int)
    chosen: np.ndarray = flat[places]
    return chosen


# ---------------------------------------------------------------- loading


def load(folder: Path, model: Model) -> nn.Module:
    """The model kept in ``folder``, made by editing a fresh ``model.build()``; in evaluation mode.

    Raises StageFailed with the reason when a file is damaged, when it belongs to another model, or when the
    probe output is not reproduced.
    """
    document = _read(folder / ARCHITECTURE)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise StageFailed(f"{folder / WEIGHTS} cannot be read: {error}") from error
    bad = first_nonfinite(tensors.items())
    if bad is not None:
        raise StageFailed(f"{folder / WEIGHTS}: {bad}")
    module = (model.named(document.build) if document.build else model).build()
    put_factors(module, document.architecture.factors)
    edit(module, document.architecture)
    put_tensors(module, document.architecture, tensors)
    module.eval()
    unknown = [
        name for name in document.sparse if name not in dict(module.named_parameters(remove_duplicate=False))
    ]
    if unknown:
        raise StageFailed(
            f"architecture.json says that {unknown[0]} is sparse; the model has no such parameter"
        )
    mark_sparse(module, document.sparse)
    _check_probe(module, model, document.probe, folder)
    return module


def _read(path: Path) -> Document:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise StageFailed(f"{path} has {path.stat().st_size} bytes; at most {LARGEST_JSON} are read")
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        return Document.model_validate_json(json.dumps(raw), by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StageFailed(f"{path} is not an architecture: {where}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StageFailed(f"{path} cannot be read: {error}") from error


def _check_probe(module: nn.Module, model: Model, probe: Probe, folder: Path) -> None:
    outputs = _probe_outputs(module, model, probe.samples)
    if outputs.keys() != probe.outputs.keys():
        raise StageFailed(
            f"{folder}: the model gives {', '.join(outputs)}; the checkpoint was made with "
            f"{', '.join(probe.outputs)}"
        )
    for name, kept in probe.outputs.items():
        values = outputs[name]
        if values.shape != kept.shape:
            raise StageFailed(
                f"{folder}: output {name} is {list(values.shape)}; the checkpoint was made with {list(kept.shape)}"
            )
        spread = _spread(values)
        if len(spread) != len(kept.values):
            raise StageFailed(f"{folder / ARCHITECTURE}: probe output {name} has {len(kept.values)} values")
        apart = float(np.abs(spread - np.asarray(kept.values)).max(initial=0.0))
        if apart > probe.tolerance * max(kept.largest, 1e-300):
            raise StageFailed(
                f"{folder}: the loaded model does not give what the saved one gave: output {name} is off by "
                f"{apart:.3g}, of at most {kept.largest:.3g}; has the code of the model changed since?"
            )
