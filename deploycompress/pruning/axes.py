"""How wide each axis of each layer is, as a function of the groups' widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from deploycompress.pruning.groups import ChannelGroup
from deploycompress.pruning.layers import Axis, Layer, describe


@dataclass(frozen=True)
class AxisWidth:
    """``full`` positions, of which each channel of group ``id`` is ``per_channel[id]``; others are constant."""

    full: int
    per_channel: Mapping[str, float]

    def at(self, widths: Mapping[str, int], full_widths: Mapping[str, int]) -> float:
        """Positions left when group ``id`` keeps ``widths[id]`` of its ``full_widths[id]`` channels."""
        return self.full - sum(
            share * (full_widths[id] - widths[id]) for id, share in self.per_channel.items()
        )


def axis_widths(module: nn.Module, groups: Sequence[ChannelGroup]) -> dict[tuple[str, Axis], AxisWidth]:
    """(layer, axis) -> its width, for every axis that some group reaches; bare parameters are left out."""
    shares: dict[tuple[str, Axis], dict[str, float]] = {}
    full: dict[tuple[str, Axis], int] = {}
    for group in groups:
        for member in group.members:
            if member.dim is not None:
                continue
            layer = describe(module.get_submodule(member.layer))
            if not isinstance(layer, Layer) or member.axis not in layer.widths:
                continue
            place = (member.layer, member.axis)
            full[place] = layer.widths[member.axis]
            found = shares.setdefault(place, {})
            found[group.id] = found.get(group.id, 0.0) + len(member.positions) / group.width
    return {place: AxisWidth(full[place], share) for place, share in shares.items()}
