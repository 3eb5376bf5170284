"""Whatever a loader yields -> a Batch by the model's input names, checked against its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploycompress.config.schema import InputSpec
from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Specs = Mapping[str, InputSpec]
TARGET_KEYS = ("targets", "target", "labels", "label", "y")
FORMS = "(inputs, targets), inputs alone, a dict with the inputs' names and 'targets', or a Batch"


def named(item: Any, specs: Specs, where: str) -> tuple[dict[str, Any], Any]:
    """Inputs by name, and targets (None: no labels), of what a loader or a data set yields.

    A tuple goes by order: (x, y), (x1, x2, y) or ((x1, x2), y). Raises ConfigError naming ``where``.
    """
    if isinstance(item, Batch):
        item = {**item.inputs, "targets": item.targets}
    if isinstance(item, Mapping):
        return _from_mapping(item, specs, where)
    if not isinstance(item, (tuple, list)):
        item = (item,)
    if len(item) == 2 and isinstance(item[0], Mapping):
        return _from_mapping({**item[0], "targets": item[1]}, specs, where)
    if len(item) == 2 and isinstance(item[0], (tuple, list)):
        item = (*item[0], item[1])
    if len(item) not in (len(specs), len(specs) + 1):
        raise ConfigError(
            f"{where}: received a tuple of {len(item)}; expected {FORMS}, for the model's inputs {_names(specs)}"
        )
    return dict(zip(specs, item, strict=False)), item[len(specs)] if len(item) > len(specs) else None


def _from_mapping(item: Mapping[str, Any], specs: Specs, where: str) -> tuple[dict[str, Any], Any]:
    missing = [name for name in specs if name not in item]
    if missing:
        raise ConfigError(
            f"{where}: received a dict with {_names(item)}; expected the model's inputs {_names(specs)}: "
            "rename its keys, or the names under model.inputs"
        )
    rest = {key: value for key, value in item.items() if key not in specs}
    key = next((k for k in TARGET_KEYS if k in rest), None)
    if rest and key is None:
        raise ConfigError(
            f"{where}: received a dict with {_names(rest)} beside the model's inputs; expected the labels under "
            f"'targets': rename the key, or leave it out"
        )
    return {name: item[name] for name in specs}, None if key is None else rest[key]


def collated(samples: Sequence[Any], specs: Specs, where: str) -> Batch:
    """Single samples -> one Batch; targets that cannot be stacked (boxes of one image) become a list."""
    pairs = [named(sample, specs, where) for sample in samples]
    inputs = {name: _stacked([p[0][name] for p in pairs], name, where) for name in specs}
    return Batch(inputs, _stacked_targets([p[1] for p in pairs]), len(samples))


def batched(item: Any, specs: Specs, where: str) -> Batch:
    """A batch as a loader yields it -> a Batch of tensors; samples in a list of their own are stacked."""
    if isinstance(item, (tuple, list)) and len(item) == 2 and len(specs) == 1 and _is_samples(item[0], specs):
        item = (_stacked(item[0], next(iter(specs)), where), item[1])  # torchvision's collate for detection
    inputs, targets = named(item, specs, where)
    tensors = {name: tensor(value, f"{where}, input {name!r}") for name, value in inputs.items()}
    first = next(iter(tensors.values()))
    targets = _stacked_targets(targets) if isinstance(targets, (np.ndarray, list, tuple)) else targets
    return Batch(tensors, targets, int(first.shape[0]) if first.ndim else 0)


def _is_samples(value: Any, specs: Specs) -> bool:
    """Whether this is a list of samples of the one input, each without the batch's dimension."""
    dimensions = len(next(iter(specs.values())).shape) - 1
    return (
        isinstance(value, (tuple, list)) and len(value) > 0 and all(np.ndim(v) == dimensions for v in value)
    )


def tensor(value: Any, where: str) -> Tensor:
    import torch

    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{where}: received {type(value).__name__}, which makes no tensor ({error}); expected a tensor or an array"
        ) from error


def _stacked(values: Sequence[Any], name: str, where: str) -> Tensor:
    import torch

    tensors = [tensor(value, f"{where}, input {name!r}") for value in values]
    shapes = sorted({tuple(t.shape) for t in tensors})
    if len(shapes) > 1:
        raise ConfigError(
            f"{where}, input {name!r}: samples of shapes {shapes[0]} and {shapes[1]} cannot be one batch: "
            "resize or pad them in the data set, or yield whole batches (deploycompress.data.padding.padded makes one, with its mask)"
        )
    return torch.stack(tensors)


def _stacked_targets(values: Any) -> Any:
    """One target a sample -> a tensor, a dict of them (a target for each head), or the list as it is.

    Dicts with ``boxes``, as torchvision's detection models take them, stay one dict an image.
    """
    import torch

    if isinstance(values, np.ndarray):
        return torch.as_tensor(values)
    if any(value is None for value in values):
        return None
    if values and all(isinstance(value, Mapping) and value.keys() == values[0].keys() for value in values):
        heads = values[0].keys()
        return (
            list(values)
            if "boxes" in heads
            else {head: _stacked_targets([v[head] for v in values]) for head in heads}
        )
    try:
        tensors = [torch.as_tensor(value) for value in values]
    except (TypeError, ValueError, RuntimeError):
        return list(values)
    if not tensors:
        return []
    return torch.stack(tensors) if len({t.shape for t in tensors}) == 1 else list(values)


def check(batch: Batch, specs: Specs, where: str, samples: Sequence[int] | None = None) -> None:
    """Raises ConfigError where a batch does not fit the model's inputs or holds NaN or Inf.

    ``samples``: the position in the split of each sample, to name one that is not finite.
    """
    named_sizes: dict[str, tuple[str, int]] = {}
    for name, spec in specs.items():
        value, place = batch.inputs[name], f"{where}, input {name!r}"
        received, expected = list(value.shape), list(spec.shape)
        # The first dimension is the batch: one that is fixed for the artefact need not be kept in training.
        fits = len(received) == len(expected) and all(
            not isinstance(e, int) or e == r for r, e in zip(received[1:], expected[1:], strict=True)
        )
        dtype = str(value.dtype).removeprefix("torch.")
        if not fits or dtype != spec.dtype:
            raise ConfigError(
                f"{place}: received {dtype}{received}; expected {spec.dtype}{_shape(spec)}, as model.inputs "
                "says: change the data, or model.inputs"
            )
        for size, dimension in zip(received, expected, strict=True):
            if isinstance(dimension, str):
                other, known = named_sizes.setdefault(dimension, (name, size))
                if size != known:
                    raise ConfigError(
                        f"{place}: dimension {dimension!r} is {size}, but {known} in input {other!r}: they must agree"
                    )
        _check_values(value, spec, place, samples)


def _check_values(value: Tensor, spec: InputSpec, place: str, samples: Sequence[int] | None) -> None:
    import torch

    # A finite sum has finite summands, in one pass; one that is not may also be too large.
    odd = value.is_floating_point() and not bool(torch.isfinite(value.sum()))
    if odd and (rows := (~torch.isfinite(value)).flatten(1).any(1).nonzero().flatten().tolist()):
        first = samples[rows[0]] if samples is not None else rows[0]
        raise ConfigError(
            f"{place}: NaN or Inf in sample {first} ({len(rows)} such in this batch): repair or leave out such samples"
        )
    if spec.max is not None and value.numel() and not (int(value.min()) >= 0 and int(value.max()) < spec.max):
        raise ConfigError(
            f"{place}: received values {int(value.min())} to {int(value.max())}; expected 0 to {spec.max - 1}, "
            "as model.inputs says with 'max'"
        )


def _shape(spec: InputSpec) -> str:
    return "[" + ", ".join(map(str, spec.shape)) + "]"


def _names(names: Any) -> str:
    return ", ".join(map(repr, names)) or "no keys"
