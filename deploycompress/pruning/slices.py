"""A group's slices of the weights that make or read its channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from deploycompress.pruning.groups import ChannelGroup, Member
from deploycompress.pruning.layers import Layer, describe, has_both_axes


def producers(module: nn.Module, group: ChannelGroup) -> Iterator[Member]:
    """Convolutions and linear layers that make the group's channels; depthwise ones only pass them on."""
    yield from _members(module, group, "out")


def consumers(module: nn.Module, group: ChannelGroup) -> Iterator[Member]:
    """Convolutions and linear layers that read the group's channels."""
    yield from _members(module, group, "in")


def weight_name(module: nn.Module, member: Member) -> str:
    """Path of the weight with which the member's layer makes or reads channels."""
    layer = describe(module.get_submodule(member.layer))
    assert isinstance(layer, Layer)
    return f"{member.layer}.{layer.weight}" if member.layer else layer.weight


def by_channel(module: nn.Module, group: ChannelGroup, member: Member, weight: Tensor) -> Tensor:
    """[width] sum of ``weight`` (of the shape of the member's weight) over each channel's slices."""
    along = slices(module, member, weight).sum(1)
    total = torch.zeros(group.width, dtype=along.dtype, device=along.device)
    channels, positions = member.channels.to(along.device), member.positions.to(along.device)
    return total.index_add(0, channels, along[positions])


def slices(module: nn.Module, member: Member, weight: Tensor) -> Tensor:
    """[positions along the member's axis, weights of one position]"""
    layer = describe(module.get_submodule(member.layer))
    assert isinstance(layer, Layer)
    dim, width = layer.tensors[layer.weight][member.axis], layer.widths[member.axis]
    if weight.shape[dim] == width:
        return weight.transpose(0, dim).flatten(1)
    # A grouped weight: its dimension 1 counts inside a run, and the runs lie along dimension 0.
    runs = weight.reshape(layer.runs, -1, *weight.shape[1:])
    return runs.transpose(1, 2).flatten(0, 1).flatten(1)


def _members(module: nn.Module, group: ChannelGroup, axis: str) -> Iterator[Member]:
    for member in group.members:
        if member.axis == axis and member.dim is None:
            layer = describe(module.get_submodule(member.layer))
            if isinstance(layer, Layer) and has_both_axes(layer):
                yield member
