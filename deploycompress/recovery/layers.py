"""What the layers of a network give out: seen on a first batch, and read while they run."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Outputs

HALVES = (torch.float16, torch.bfloat16)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
NORMS_LAST = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Layer:
    """What one module gave out on a batch: sizes [batch, ...], and which dimension is its width."""

    shape: tuple[int, ...]
    axis: int
    block: bool = False  # a compound of which the network has several: a residual block, a transformer layer
    inside: bool = False  # lies in such a block

    @property
    def width(self) -> int:
        return self.shape[self.axis]

    @property
    def size(self) -> tuple[int, ...]:
        """The other dimensions: the batch and the positions."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def positions(self) -> int:
        return math.prod(self.size[1:])

    def fits(self, other: Layer) -> bool:
        """Whether the two differ in width at most."""
        return self.axis == other.axis and self.size == other.size


Layers = Mapping[str, Layer]  # by module path, in the order in which they are done


@dataclass(frozen=True)
class Pair:
    """A layer of the student and the one of the teacher that it learns from, by module path."""

    student: str
    teacher: str


class FeatureLoss(Protocol):
    """A loss that reads features too.

    ``attach`` is asked once, after a first batch has gone through both networks: it says which layers it wants in
    ``Outputs.features`` from then on. An attribute ``trainable``, a module or None, is trained with the student.
    """

    def attach(self, student: Layers, teacher: Layers) -> Sequence[Pair]:
        """Raises ConfigError where the layers do not fit."""
        ...

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor: ...


# ---------------------------------------------------------------- seen


def trace(module: nn.Module, run: Callable[[], Mapping[str, Tensor]]) -> Layers:
    """What ``run()``, a forward pass of ``module`` that gives its outputs by name, has its layers give out.

    Of modules that run exactly once and give out a tensor with a width for every sample; the network's own outputs
    are no features.
    """
    runs: Counter[str] = Counter()
    found: dict[str, Layer] = {}
    made: dict[str, weakref.ref[Tensor]] = {}
    widths: dict[int, tuple[int, int]] = {}  # number of dimensions -> which is the width, and how wide it is
    compounds = blocks(module)

    def note(path: str, part: nn.Module) -> Callable[..., None]:
        inside = any(path.startswith(f"{block}.") for block in compounds)

        def hook(_: nn.Module, given: Any, output: Any) -> None:
            runs[path] += 1
            tensor = first_tensor(output)
            if tensor is None or tensor.ndim < 2 or not tensor.is_floating_point():
                return
            axis = _axis(part, tensor, widths.get(tensor.ndim))
            widths[tensor.ndim] = axis, tensor.shape[axis]
            found[path] = Layer(tuple(tensor.shape), axis, path in compounds, inside)
            made[path] = weakref.ref(tensor)

        return hook

    hooks = [
        part.register_forward_hook(note(path, part)) for path, part in module.named_modules() if path != ""
    ]
    try:
        with torch.no_grad():
            outputs = run()
    finally:
        for handle in hooks:
            handle.remove()
    last = {id(tensor) for tensor in outputs.values()}
    samples = next(iter(outputs.values())).shape[:1]
    return {
        path: layer
        for path, layer in found.items()
        if runs[path] == 1 and layer.shape[:1] == samples and id(made[path]()) not in last
    }


def blocks(module: nn.Module) -> frozenset[str]:
    """Paths of compound modules of which there are several of one class."""
    compound = {
        path: type(part)
        for path, part in module.named_modules()
        if path and type(part) not in CONTAINERS and any(True for _ in part.children())
    }
    number = Counter(compound.values())
    return frozenset(path for path, kind in compound.items() if number[kind] > 1)


def _axis(part: nn.Module, tensor: Tensor, before: tuple[int, int] | None) -> int:
    """Which dimension is the width: the layer knows, or it is where a tensor like it had it ``before``.

    What a permutation has moved is found by how wide it was.
    """
    if isinstance(part, CHANNELS_FIRST):
        return 1
    if isinstance(part, CHANNELS_LAST):
        return tensor.ndim - 1
    if isinstance(part, NORMS_LAST):  # some move the channels to the end for it, and back
        before = tensor.ndim - 1, part.normalized_shape[-1]
    if before is None:
        return 2 if tensor.ndim == 3 else 1
    axis, width = before
    if tensor.shape[axis] == width:
        return axis
    alike = [i for i in range(1, tensor.ndim) if tensor.shape[i] == width]
    return alike[0] if len(alike) == 1 else axis


def first_tensor(output: Any) -> Tensor | None:
    """What a module gave out, where it is a tensor or begins with one (a recurrent layer, a transformer's)."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


# ---------------------------------------------------------------- read


@contextmanager
def watched(module: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at ``paths`` give out while they run inside; the hooks are gone afterwards.

    A checkpoint refuses a module with hooks, and an evaluation has no use for them. A layer that the next one
    changes in place (``ReLU(inplace=True)``) is seen as it is after that, in both networks alike.
    """
    seen: dict[str, Tensor] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:  # in mixed precision losses are taken in float32
                seen[path] = tensor.float() if tensor.dtype in HALVES else tensor

        return hook

    hooks = [module.get_submodule(path).register_forward_hook(note(path)) for path in dict.fromkeys(paths)]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
