"""The norm of every channel over all of its group, as autograd sees it; and the channels where it is least."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from deploycompress.pruning.groups import ChannelGroup, Member
from deploycompress.pruning.layers import Layer, describe


def channel_squares(module: nn.Module, group: ChannelGroup) -> Tensor:
    """[width] the squared L2 norm of all slices that go with each channel: weights, biases, norms' parameters."""
    total: Tensor | None = None
    for member, along in _slices(module, group):
        if total is None:
            total = torch.zeros(group.width, dtype=along.dtype, device=along.device)
        positions, channels = (t.to(along.device) for t in (member.positions, member.channels))
        total = total.index_add(0, channels, along[positions])
    assert total is not None, f"{group.id} has no parameters"
    return total


def weakest(group: ChannelGroup, norms: Tensor, share: float) -> Tensor:
    """The ``share`` of the channels that is least by ``norms`` [width], ascending; what the grid allows next to it."""
    width = min(group.grid, key=lambda kept: abs(kept - (1 - share) * group.width))
    everything = torch.arange(group.width)
    return everything[~torch.isin(everything, group.keep(norms.detach().double().cpu(), width))]


def by_position(tensor: Tensor, dim: int, layer: Layer, width: int) -> Tensor:
    """[width, elements] a tensor of a layer, a row for each of the ``width`` positions along ``dim``."""
    if tensor.shape[dim] == width:
        return tensor.movedim(dim, 0).reshape(width, -1)
    # A grouped weight: its dimension 1 counts inside a run, and the runs lie along dimension 0.
    return tensor.reshape(layer.runs, -1, *tensor.shape[1:]).transpose(1, 2).reshape(width, -1)


def _slices(module: nn.Module, group: ChannelGroup) -> Iterator[tuple[Member, Tensor]]:
    """Each member's parameters with their squares summed up position by position."""
    for member in group.members:
        if member.dim is not None:
            owner, _, leaf = member.layer.rpartition(".")
            bare = getattr(module.get_submodule(owner), leaf)
            if isinstance(bare, nn.Parameter):
                yield member, bare.square().movedim(member.dim, 0).flatten(1).sum(1)
            continue
        part = module.get_submodule(member.layer)
        layer = describe(part)
        assert isinstance(layer, Layer)
        for name, dims in layer.tensors.items():
            tensor = getattr(part, name, None)
            if member.axis in dims and isinstance(tensor, nn.Parameter):
                rows = by_position(tensor.square(), dims[member.axis], layer, layer.widths[member.axis])
                yield member, rows.sum(1)
