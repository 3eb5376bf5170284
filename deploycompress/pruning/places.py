"""Where labels lie: the axes of layers, and the dimensions of tensors that belong to no known layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from deploycompress.pruning.labels import FREE, Layer, Ties, along
from deploycompress.pruning.layers import Axis, describe
from deploycompress.pruning.layers import Layer as Kind

# A layer and its axis, a bare tensor and its dimension, or a module that gives heads of attention to others.
Place = tuple[str, Axis | int | Literal["heads"]]


class Places:
    """The labels of each place, position by position; the same whenever it is met.

    ``claimed``: positions that belong to somebody else (heads of attention), which have no label.
    """

    def __init__(self, module: nn.Module, claimed: Mapping[Place, Tensor]) -> None:
        self.ties, self.claimed = Ties(), claimed
        self.labels: dict[Place, Tensor] = {}
        self.reached: set[str] = set()  # layers whose forward, or whose weight, was used
        self._layer_of = dict(_tensors_of_layers(module))

    def at(self, place: Place, width: int) -> Tensor:
        """[width] the labels at ``place``."""
        if place not in self.labels:
            labels = self.ties.new(width)
            labels[self.claimed.get(place, torch.arange(0))] = FREE
            self.labels[place] = labels
        return self.labels[place]

    def meet(self, place: Place, labels: Tensor) -> None:
        """``labels`` arrive at ``place``; with those that arrived there in an earlier call they go together."""
        name = place[0]
        if place in self.claimed:
            self.ties.freeze(labels[self.claimed[place]], f"{name} reads heads of attention there")
            labels = labels.clone()
            labels[self.claimed[place]] = FREE
        known = self.labels.setdefault(place, labels)
        if known is labels:
            return
        if len(known) != len(labels):
            self.ties.freeze(torch.cat([known, labels]), f"{name} is used at different widths")
            return
        self.ties.tie(known, labels)
        for one, other in ((known, labels), (labels, known)):
            if bool(((one == FREE) & (other != FREE)).any()):
                self.ties.freeze(other[one == FREE], f"{name} reads something else at the same positions")

    def of_tensor(self, name: str, tensor: Tensor) -> list[Layer]:
        """The labels of a parameter or buffer along each of its dimensions.

        One of a known layer has those of the layer's axes: its module may be used without being called.
        """
        owner = self._layer_of.get(name)
        if owner is not None:
            self.reached.add(owner[0])
        found = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                axis = None if owner is None else owner[1].get(dim)
                place: Place = (name, dim) if owner is None or axis is None else (owner[0], axis)
                found.append(along(self.at(place, size), dim, tensor.shape))
        return found


def _tensors_of_layers(module: nn.Module) -> Iterable[tuple[str, tuple[str, dict[int, Axis]]]]:
    """Path of a tensor -> its layer, and the axis that each of its dimensions is."""
    for name, part in module.named_modules():
        kind = describe(part)
        if isinstance(kind, Kind) and kind.runs == kind.multiplier == 1:
            for leaf, dims in kind.tensors.items():
                yield f"{name}.{leaf}" if name else leaf, (name, {dim: axis for axis, dim in dims.items()})
