"""Weights from a file into a model that is built."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.errors import ConfigError

PICKLED = (".pt", ".pth", ".th")
# What training scripts put their state_dict under; the plain weights come before averaged ones.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "student",
    "state_dict_ema",
    "model_ema",
    "ema",
)
PREFIXES = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel, torch.compile, Lightning
SHOWN = 4


def load_weights(module: nn.Module, path: Path) -> str:
    """Load a state_dict file into ``module``; gives back how it was read, for the log.

    Takes .safetensors, and .pt .pth .th with ``weights_only=True`` (never a pickled model). A wrapped
    state_dict is unwrapped, and a prefix that every name carries is taken off. Raises ConfigError naming
    what is missing, unexpected, of another shape, or not finite.
    """
    if not path.is_file():
        raise ConfigError(f"model.weights: {path} does not exist")
    document = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    state, how = _unwrapped(document, module, path)
    _fill_in(state, module)
    _compare(state, module, path)
    bad = first_nonfinite(state.items())
    if bad is not None:
        raise ConfigError(f"model.weights: {path}: {bad}; the file holds a training run that diverged")
    module.load_state_dict(state, strict=True)
    return ", ".join(how) or "as it is"


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """``tensor NAME has 3 NaN or infinite values of 100``, or None when all are finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                return f"tensor {name} has {bad} NaN or infinite values of {tensor.numel()}"
    return None


# ---------------------------------------------------------------- reading


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"model.weights: {path} is not a readable safetensors file: {error}") from error


def _pickled(path: Path) -> Any:
    if path.suffix not in PICKLED:
        raise ConfigError(
            f"model.weights: {path.name} has the ending {path.suffix!r}; expected .safetensors, "
            f"or a state_dict in {', '.join(PICKLED)}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"model.weights: {path} holds more than tensors, and loading it would run code from the file; "
            "save the state_dict: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or ["no message"])[0]
        raise ConfigError(f"model.weights: {path} cannot be read: {type(error).__name__}: {first}") from error


def _unwrapped(document: Any, module: nn.Module, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict inside, with common prefixes taken off; and what was done."""
    how: list[str] = []
    while isinstance(document, Mapping):
        inside = next((k for k in WRAPPERS if isinstance(document.get(k), Mapping)), None)
        if inside is None:
            break
        document = document[inside]
        how.append(f"from {inside!r}")
    if not isinstance(document, Mapping) or not document:
        received = "an empty mapping" if isinstance(document, Mapping) else type(document).__name__
        raise ConfigError(f"model.weights: {path} holds {received}; expected a state_dict of tensors by name")
    state = dict(document)
    strange = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if strange:
        raise ConfigError(
            f"model.weights: {path}: {_some(strange)} in it are not tensors; expected a state_dict "
            f"(or one under {', '.join(WRAPPERS[:3])} ...)"
        )
    expected = module.state_dict().keys()
    while prefix := next((p for p in PREFIXES if all(str(k).startswith(p) for k in state)), None):
        if any(name.startswith(prefix) for name in expected):
            break
        state = {str(k).removeprefix(prefix): v for k, v in state.items()}
        how.append(f"without the prefix {prefix!r}")
    return state, how


# ---------------------------------------------------------------- fitting


def _fill_in(state: dict[str, Tensor], module: nn.Module) -> None:
    """Add what files may leave out: names tied to one that is there, and batch counters of old files."""
    own = module.state_dict(keep_vars=True)
    by_identity = {id(t): name for name, t in own.items() if name in state}
    for name, tensor in own.items():
        if name in state:
            continue
        if id(tensor) in by_identity:
            state[name] = state[by_identity[id(tensor)]]
        elif name.endswith(".num_batches_tracked"):
            state[name] = tensor


def _compare(state: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    other = [
        f"{name} is {list(state[name].shape)}, the model's is {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    parts = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing in the file", missing),
            ("not in the model", unexpected),
            ("other shapes", other),
        )
        if names
    ]
    if parts:
        raise ConfigError(
            f"model.weights: {path} does not fit the model; {'; '.join(parts)}. Check model.build and model.args"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
