"""Labels of a tensor's elements: which channel each of them belongs to, and which labels go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

FREE = 0  # the label of what belongs to no channel; it ties nothing

# A layer of labels: int64, of the shape of the tensor that it labels, with stride 0 along every dimension on
# which it does not depend. A tensor has several where several of its dimensions are somebody's channels (a
# token mixer's). All functions below keep to that form.
Layer = Tensor


def along(labels: Tensor, dim: int, shape: Sequence[int]) -> Layer:
    """The layer of a tensor of ``shape`` whose index along ``dim`` alone says the label."""
    sizes = [1] * len(shape)
    sizes[dim] = len(labels)
    return labels.view(sizes).expand(tuple(shape))


def tidy(labels: Tensor) -> Layer:
    """The same labels with stride 0 wherever they do not vary."""
    shape = labels.shape
    labels = _core(labels, varying_by_stride(labels))
    for dim in range(labels.ndim):
        if labels.shape[dim] > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels.expand(shape)


def varying_by_stride(labels: Tensor) -> set[int]:
    return {d for d in range(labels.ndim) if labels.shape[d] > 1 and labels.stride(d)}


def varying(layer: Layer) -> set[int]:
    """Dimensions that the labels depend on."""
    return varying_by_stride(layer)


def is_free(layer: Layer) -> bool:
    return not bool(_core(layer, varying(layer)).any())


def resized(layer: Layer, shape: Sequence[int]) -> Layer:
    """The layer for a tensor that is larger or smaller along dimensions on which it does not depend."""
    return _core(layer, varying(layer)).expand(tuple(shape))


def _core(layer: Tensor, dims: set[int]) -> Tensor:
    for d in range(layer.ndim):
        if d not in dims and layer.shape[d] > 1:
            layer = layer.narrow(d, 0, 1)
    return layer


class Ties:
    """Which labels go together; collected pair by pair, resolved once at the end."""

    def __init__(self) -> None:
        self.count = 1  # labels given out; FREE is the first
        self._pairs: list[np.ndarray] = []
        self.reasons: dict[int, str] = {}  # a label that stands for "never removed" -> why

    def new(self, number: int) -> Tensor:
        """``number`` labels that nothing had before."""
        self.count += number
        return torch.arange(self.count - number, self.count)

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Labels at the same place go together; the two broadcast."""
        dims = max(first.ndim, second.ndim)
        a, b = (t.view((1,) * (dims - t.ndim) + t.shape) if t.ndim < dims else t for t in (first, second))
        needed = varying(a) | varying(b)
        a, b = _core(a, needed), _core(b, needed)
        shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
        a, b = a.expand(shape), b.expand(shape)
        apart = (a != b) & (a != FREE) & (b != FREE)
        if bool(apart.any()):
            pairs = torch.stack([a[apart], b[apart]], 1).numpy()
            self._pairs.append(np.unique(pairs, axis=0))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """These are never removed."""
        label = next((label for label, known in self.reasons.items() if known == reason), None)
        if label is None:
            label = int(self.new(1)[0])
            self.reasons[label] = reason
        self.tie(_core(labels, varying(labels)), torch.tensor(label))

    def gather(self, layer: Layer, dim: int) -> Tensor:
        """[size of ``dim``] one label for each index; all that share an index go together."""
        return (
            self.gather_over(layer, set(range(layer.ndim)) - {dim % layer.ndim})
            .reshape(-1)
            .expand(layer.shape[dim])
        )

    def gather_over(self, layer: Layer, dims: Iterable[int]) -> Layer:
        """The layer with size 1 along ``dims``, over which labels now go together; what is free is left out."""
        dims = set(dims)
        core = _core(layer, varying(layer))
        over = [d for d in dims if core.shape[d] > 1]
        if over:
            first = core.amax(over, keepdim=True)  # FREE is the lowest
            self.tie(core, first)
            core = first
        kept = [1 if d in dims else size for d, size in enumerate(layer.shape)]
        return tidy(core.expand(kept))

    def classes(self) -> tuple[np.ndarray, dict[int, str]]:
        """[labels] the class of each, and the classes that are never removed with their reasons."""
        pairs = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *self._pairs]), axis=0)
        ones = np.ones(len(pairs), np.int8)
        graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(self.count, self.count))
        _, found = connected_components(graph, directed=False)
        frozen: dict[int, str] = {}
        for label, reason in self.reasons.items():
            frozen.setdefault(int(found[label]), reason)
        return found, frozen
