"""Soft pruning: weak channels are set to zero between epochs and go on training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deploycompress.pruning.groups import ChannelGroup, Member
from deploycompress.pruning.layers import Layer, describe
from deploycompress.pruning.norms import by_position, weakest
from deploycompress.pruning.slices import producers


class SoftPruning:
    """Zeroes the filters of the ``share`` of every group's channels whose filters have the least L2 norm.

    After every ``every``-th epoch, and after the training. Only the filters that make a channel are zeroed: those
    that read it, and the normalisation after it, keep its gradient alive, so that it may come back (with a ReLU where
    that normalisation shifts it above zero). He et al., "Soft Filter Pruning for Accelerating
    Deep Convolutional Neural Networks", algorithm 1.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[ChannelGroup], share: float, every: int, epochs: int
    ) -> None:
        self._module, self._groups = module, groups
        self._share, self._every, self._epochs = share, every, epochs

    def __call__(self, epoch: int) -> None:
        """``epoch``: how many are done."""
        if epoch % self._every == 0 or epoch == self._epochs:
            with torch.no_grad():
                for group in self._groups:
                    self._zero(group)

    def _zero(self, group: ChannelGroup) -> None:
        members = list(producers(self._module, group))
        norms = torch.zeros(group.width, dtype=torch.float64)
        for member in members:
            for tensor, dim, layer in _made_by(self._module, member):
                rows = by_position(tensor, dim, layer, layer.widths["out"])
                squares = rows.double().square().sum(1).cpu()
                norms.index_add_(0, member.channels, squares[member.positions])
        gone = weakest(group, norms.sqrt(), self._share)
        for member in members:
            positions = member.at(gone)
            for tensor, dim, layer in _made_by(self._module, member):
                _fill(tensor, dim, layer, positions.to(tensor.device))


def _made_by(module: nn.Module, member: Member) -> list[tuple[Tensor, int, Layer]]:
    """The weight and the bias that make a member's output channels, each with its dimension."""
    part = module.get_submodule(member.layer)
    layer = describe(part)
    assert isinstance(layer, Layer)
    found = [
        (getattr(part, name, None), dims["out"]) for name, dims in layer.tensors.items() if "out" in dims
    ]
    return [(tensor, dim, layer) for tensor, dim in found if tensor is not None]


def _fill(tensor: Tensor, dim: int, layer: Layer, positions: Tensor) -> None:
    """Zeros at ``positions`` along ``dim``, in place."""
    width = layer.widths["out"]
    if tensor.shape[dim] == width:
        tensor.index_fill_(dim, positions, 0.0)
        return
    mask = torch.ones(width, dtype=tensor.dtype, device=tensor.device).index_fill_(0, positions, 0.0)
    runs = tensor.view(layer.runs, -1, *tensor.shape[1:])
    runs.mul_(mask.view(layer.runs, 1, -1, *[1] * (tensor.ndim - 2)))
