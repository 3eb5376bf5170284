"""Exports a PyTorch model to ONNX by the first exporter whose file computes the same."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploycompress import __version__
from deploycompress.contracts import Model, Note
from deploycompress.errors import DeployCompressError, StageFailed
from deploycompress.graph.bisect import first_layer
from deploycompress.graph.execution import run_onnx
from deploycompress.graph.exporters import EXPORTERS, Exporter, FrozenValues
from deploycompress.graph.fold import fold_batchnorm
from deploycompress.model.parity import Parity, compare, to_numpy
from deploycompress.writing import saving

TRACED_BATCH = 2  # a batch of one is frozen into the graph (pytorch#157621)
TOLERANCE = 1e-3  # of the largest output; float32 through a deep network differs by 1e-6 to 1e-5
METADATA = "deploycompress"  # before the names of what a file says of itself
LARGEST_FILE_BYTES = 1_800_000_000  # above it the weights go beside the file: protobuf ends at 2 GiB

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Export:
    """An ONNX file, how it was made, and how far it is from the model: one parity for each feed."""

    path: Path
    exporter: str
    opset: int
    parity: tuple[Parity, ...]
    folded: tuple[str, ...]  # names of the batch normalisations that went into the layer before them
    notes: tuple[Note, ...]


def export_onnx(
    module: nn.Module,
    model: Model,
    path: Path,
    *,
    opset: int = 18,
    feeds: Sequence[Mapping[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> Export:
    """Write ``module`` to ``path``, with inputs and outputs named as ``model`` names them, and ``metadata`` in it.

    Named dimensions become dynamic, which ``feeds`` of several batch sizes prove, and one of another size than the
    traced one where all have that; where the batch is fixed, only feeds of that size count. Raises StageFailed with
    the reason of every exporter tried.
    """
    feeds = _fitting(feeds, model)
    example = model.example(_traced_batch(model))
    folded, names = fold_batchnorm(module, model, example)
    original = copy.deepcopy(module).eval()
    with torch.no_grad():
        expected = [to_numpy(model.call(original, feed)) for feed in feeds]
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons: list[str] = []
    for exporter, graph_of in EXPORTERS.items():
        try:
            told = {"version": __version__, "exporter": exporter, **(metadata or {})}
            frozen = _write(graph_of, folded, model, example, path, opset, told)
            parity = _parity(path, feeds, expected, folded, model)
        except Exception as error:  # an exporter may raise anything
            reasons.append(f"{exporter}: {_reason(error)}")
            continue
        notes = [Note("fell_back", reason) for reason in reasons]
        notes += [Note("warning", f"exported by {exporter}, which says: {said}") for said in frozen]
        return Export(path, exporter, opset, parity, tuple(names), tuple(notes))
    raise StageFailed(
        f"the model does not export to ONNX: {'; '.join(reasons)}. "
        "Change the forward there, or declare a dimension that cannot vary by its number in model.inputs"
    )


def _traced_batch(model: Model) -> int:
    batch = next(iter(model.inputs.values())).shape[0]
    return batch if isinstance(batch, int) else TRACED_BATCH


def _fitting(feeds: Sequence[Mapping[str, Tensor]], model: Model) -> list[Mapping[str, Tensor]]:
    """The feeds whose batch the model declares. Raises StageFailed when there is none."""
    name, spec = next(iter(model.inputs.items()))
    fitting = [f for f in feeds if isinstance(spec.shape[0], str) or f[name].shape[0] == spec.shape[0]]
    if not fitting:
        sizes = [f[name].shape[0] for f in feeds]
        raise StageFailed(
            f"no feed has the batch size {spec.shape[0]} that input {name!r} declares, only {sizes}"
        )
    if isinstance(spec.shape[0], str) and all(f[name].shape[0] == TRACED_BATCH for f in fitting):
        fitting.append(model.example(TRACED_BATCH + 1))
    return fitting


def _parity(
    path: Path,
    feeds: Sequence[Mapping[str, Tensor]],
    expected: Sequence[Arrays],
    folded: nn.Module,
    model: Model,
) -> tuple[Parity, ...]:
    """Compare the file with the model on every feed. Raises StageFailed at the first that differs.

    ``folded``: the network as it was exported; in it the first layer that differs is looked for.
    """
    found = run_onnx(path, [to_numpy(feed) for feed in feeds])
    figures = []
    for feed, wanted, given in zip(feeds, expected, found, strict=True):
        batch = next(iter(wanted.values())).shape[0]
        try:
            figures.append(compare(wanted, given))
        except StageFailed as error:
            raise StageFailed(f"at batch size {batch} {error}") from error
        if figures[-1].relative > TOLERANCE:
            raise StageFailed(
                f"at batch size {batch} it differs from the model by {figures[-1].relative:.2g} "
                f"of the largest output, expected at most {TOLERANCE:g}{_begins(folded, model, path, feed)}"
            )
    return tuple(figures)


def _begins(folded: nn.Module, model: Model, path: Path, feed: Mapping[str, Tensor]) -> str:
    found = first_layer(folded, model, path, feed, lambda parity: parity.relative > TOLERANCE)
    return f"; {found}" if found else ""


def _reason(error: BaseException) -> str:
    """The first error of the chain: exporters wrap it in pages of general advice."""
    while error.__cause__ is not None and not isinstance(error, DeployCompressError):
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if isinstance(error, DeployCompressError):
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:500]}"


# ---------------------------------------------------------------- the file


def _write(
    graph_of: Exporter,
    module: nn.Module,
    model: Model,
    example: Mapping[str, Tensor],
    path: Path,
    opset: int,
    metadata: Mapping[str, str],
) -> list[str]:
    """Save what the exporter makes; what it says that it made a constant of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FrozenValues)
        graph = graph_of(module, model, example, opset)
    _save(graph, path, metadata)
    return [str(warning.message) for warning in said]


def _save(graph_model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the file, checked by onnx, with the same bytes for the same model on every machine."""
    import onnx
    import onnx_ir

    _strip(graph_model)
    graph_model.metadata_props.update({f"{METADATA}.{name}": text for name, text in sorted(metadata.items())})
    weights = sum(value.const_value.nbytes for value in graph_model.graph.initializers.values())
    data = f"{path.name}.data" if weights > LARGEST_FILE_BYTES else None
    with saving(path):
        onnx_ir.save(graph_model, path, external_data=data)
    onnx.checker.check_model(str(path), full_check=True)


def _strip(graph_model: Any) -> None:
    """Take away what the exporter added of its own: stack traces with paths of this machine, and our wrapper."""
    import onnx_ir

    graphs = [graph_model.graph, *(function.graph for function in graph_model.functions.values())]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.clear()
            node.doc_string = None
            values.extend(node.outputs)
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None
        for value in list(graph.initializers.values()):  # the names of the user's parameters
            value.name = value.name.removeprefix("module.")
    graph_model.metadata_props.clear()
    graph_model.doc_string = None
