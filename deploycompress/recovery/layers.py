"""What the layers of a network give out: seen on a first batch, paired between two networks, read while they run."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deploycompress.config.wording import listed, nearest
from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError

FEW_SIZES = 3  # with fewer sizes than this a network has no stages, and its repeated blocks are taken
SPREAD = 4  # of such blocks
CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RMSNorm, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class Layer:
    """What one module gave out on a batch: sizes [batch, ...], and which dimension is its width."""

    shape: tuple[int, ...]
    axis: int
    compound: bool = False  # it has modules inside

    @property
    def width(self) -> int:
        return self.shape[self.axis]

    @property
    def size(self) -> tuple[int, ...]:
        """The other dimensions: the batch and the positions."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

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
    """Every module that runs exactly once in ``run()``, gives out a tensor, and whose tensor is not an output."""
    runs: Counter[str] = Counter()
    found: dict[str, Layer] = {}
    made: dict[str, weakref.ref[Tensor]] = {}
    axes: dict[int, int] = {}  # number of dimensions -> the width's, as the last layer with weights had it

    def note(path: str, part: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, output: Any) -> None:
            runs[path] += 1
            tensor = first_tensor(output)
            if tensor is None or tensor.ndim < 2 or not tensor.is_floating_point():
                return
            if isinstance(part, CHANNELS_FIRST):
                axes[tensor.ndim] = 1
            elif isinstance(part, CHANNELS_LAST):
                axes[tensor.ndim] = tensor.ndim - 1
            axis = axes.get(tensor.ndim, 2 if tensor.ndim == 3 else 1)
            found[path] = Layer(tuple(tensor.shape), axis, any(True for _ in part.children()))
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
    kept = (path for path in found if runs[path] == 1 and id(made[path]()) not in last)
    return {path: found[path] for path in kept}


def first_tensor(output: Any) -> Tensor | None:
    """What a module gave out, where it is a tensor or begins with one (a recurrent layer, a transformer's)."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


# ---------------------------------------------------------------- paired


def pairs_by_path(student: Layers, teacher: Layers, least: int = 2) -> tuple[Pair, ...]:
    """The ends of stages: of the layers with one path and one size in both networks the last of every size.

    Of these the outermost; widths may differ. A network with few sizes, such as a transformer, gives a few of its
    repeated blocks as well, evenly spread (as Sun et al., "Patient Knowledge Distillation", 2019, skip layers).
    ``least``: dimensions that the layers must have. Raises ConfigError where there is none.
    """
    common = [
        path
        for path, layer in student.items()
        if path in teacher and len(layer.shape) >= least and layer.fits(teacher[path])
    ]
    by_size: dict[tuple[int, ...], list[str]] = {}
    for path in common:
        by_size.setdefault(student[path].size, []).append(path)
    chosen = {max(paths, key=lambda p: (-p.count("."), common.index(p))) for paths in by_size.values()}
    if len(by_size) < FEW_SIZES:
        chosen |= set(_spread(_repeated(common, student)))
    if not chosen:
        raise ConfigError(
            "no layer of the student has the path and the size of one of the teacher's: name pairs, as `layers: "
            f"{{student layer: teacher layer}}`; the student has {_examples(student)}, the teacher {_examples(teacher)}"
        )
    return tuple(Pair(path, path) for path in common if path in chosen)


def named_pairs(names: Mapping[str, str], student: Layers, teacher: Layers) -> tuple[Pair, ...]:
    """Student path -> teacher path, as the user names them. Raises ConfigError for one that is not there or fits."""
    for own, other in names.items():
        for whose, path, layers in (("student", own, student), ("teacher", other, teacher)):
            if path not in layers:
                close = nearest(path, layers)
                question = f"did you mean {close!r}? It" if close else "it"
                raise ConfigError(
                    f"layers: the {whose} has no layer {path!r} that runs once a forward pass and gives out a tensor "
                    f"[batch, width, ...]; {question} has {_examples(layers)}"
                )
        if not student[own].fits(teacher[other]):
            raise ConfigError(
                f"layers: {own} of the student gives out {list(student[own].shape)} and {other} of the teacher "
                f"{list(teacher[other].shape)}; expected sizes that differ in the width at most"
            )
    return tuple(Pair(own, other) for own, other in names.items())


def _repeated(paths: Sequence[str], layers: Layers) -> list[str]:
    """The largest set of compound layers of one size that are children of one module."""
    children: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for path in paths:
        if layers[path].compound:
            children.setdefault((path.rpartition(".")[0], layers[path].size), []).append(path)
    most = max(children.values(), key=len, default=[])
    return most if len(most) > 1 else []


def _spread(paths: Sequence[str]) -> list[str]:
    count = min(SPREAD, len(paths))
    return [paths[(i + 1) * len(paths) // count - 1] for i in range(count)]


def _examples(layers: Layers) -> str:
    return listed(f"{path} {list(layer.shape)}" for path, layer in layers.items()) or "none"


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
            if tensor is not None:
                seen[path] = tensor

        return hook

    hooks = [module.get_submodule(path).register_forward_hook(note(path)) for path in dict.fromkeys(paths)]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
