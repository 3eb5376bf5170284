"""A dependency group: channels that can only be removed together, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, lcm

import torch
from torch import Tensor

from deploycompress.errors import StageFailed
from deploycompress.pruning.layers import Axis

SMALLEST_SHARE = 0.125  # of a group's channels that is always kept

Kept = Mapping[str, Tensor]  # group id -> its channels that stay, ascending int64


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one layer, or one dimension of a parameter that belongs to no known kind of layer.

    Entry i: the group's channel ``channels[i]`` lies at ``positions[i]`` along the axis. A channel may lie at
    several positions (a flattened image) or at none (a slice).
    """

    layer: str  # module path; for a bare parameter its own name
    axis: Axis
    channels: Tensor
    positions: Tensor
    dim: int | None = None  # of a bare parameter
    kind: str = ""  # the layer's type: Conv2d, BatchNorm2d

    def at(self, channels: Tensor) -> Tensor:
        """Positions of these channels, ascending."""
        return self.positions[torch.isin(self.channels, channels)].sort().values


@dataclass(frozen=True, eq=False)
class Heads:
    """Channels that stay or go in whole attention heads.

    ``units`` [width]: which head (or heads that share keys) each channel is of, equally many channels of each.
    ``attributes``: what the attention module ``owner`` keeps of its size, and how much of it one unit is.
    """

    owner: str  # module path
    units: Tensor
    attributes: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """``width`` channels; ``id`` is the path of the first layer that makes them.

    ``segments`` [width]: channels of one segment can stand for each other; every segment keeps equally many
    (the runs of a grouped convolution, the halves of a chunk).
    ``grid``: the widths that may be chosen, ascending; the last one is ``width``.
    """

    id: str
    width: int
    members: tuple[Member, ...]
    segments: Tensor
    grid: tuple[int, ...] = ()
    heads: Heads | None = None  # None: every channel stays or goes by itself

    @property
    def segment_count(self) -> int:
        return int(self.segments.max()) + 1

    @property
    def topology(self) -> tuple[tuple[str, str], ...]:
        """Kinds and axes of all members: the same for groups whose layers hang together alike."""
        return tuple(sorted((member.kind, member.axis) for member in self.members))

    @property
    def unit(self) -> int:
        """How many channels stay or go together."""
        return 1 if self.heads is None else self.width // (int(self.heads.units.max()) + 1)

    @property
    def step(self) -> int:
        """Widths are multiples of it: a unit of every segment."""
        return self.unit * self.segment_count

    def keep(self, scores: Tensor, width: int) -> Tensor:
        """The ``width`` best channels by ``scores`` [width of the group], equally many of every segment.

        A unit's score is the sum of its channels'. Of equal scores the first stays. Ascending; a smaller width
        keeps a subset of a larger one.
        """
        each, rest = divmod(width, self.step)
        assert rest == 0, f"{self.id}: {width} channels in steps of {self.step}"
        units = torch.arange(self.width) if self.heads is None else self.heads.units
        count = self.width // self.unit
        totals = torch.zeros(count, dtype=scores.dtype).index_add(0, units, scores)
        segments = torch.zeros(count, dtype=torch.int64).index_copy(0, units, self.segments)
        order = totals.argsort(descending=True, stable=True)
        chosen = [order[segments[order] == s][:each] for s in range(self.segment_count)]
        return torch.isin(units, torch.cat(chosen)).nonzero().flatten()


@dataclass(frozen=True)
class Unpruned:
    """A layer whose output channels are left whole, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Found:
    """The groups of a model, and the layers that are left whole."""

    groups: tuple[ChannelGroup, ...]
    unpruned: tuple[Unpruned, ...]


def on_grid(
    groups: Sequence[ChannelGroup], align: int, original_widths: Mapping[str, int] | None = None
) -> tuple[ChannelGroup, ...]:
    """Give every group the widths it may have: multiples of ``align`` that its segments share equally.

    Groups of heads have whole heads, at least one, whatever ``align``: how wide a head is belongs to the model.

    At least 12.5 % of the width it has in the original model (``original_widths``, by group id) stays.
    """
    return tuple(
        replace(group, grid=_grid(group, align, (original_widths or {}).get(group.id, group.width)))
        for group in groups
    )


def _grid(group: ChannelGroup, align: int, original: int) -> tuple[int, ...]:
    align = align if group.heads is None else group.unit
    step = lcm(align, group.step)
    smallest = ceil(max(align, SMALLEST_SHARE * original) / step) * step
    return (*range(smallest, group.width, step), group.width)


def choose(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """The channels each group keeps at the planned widths.

    Groups that stay whole are left out, and those of width 0, which go with their block.
    """
    kept = {g.id: g.keep(scores[g.id], widths[g.id]) for g in groups if 0 < widths[g.id] < g.width}
    for id, channels in kept.items():
        if len(channels) != widths[id]:
            raise StageFailed(f"group {id} would keep {len(channels)} channels; planned are {widths[id]}")
    return kept


def removed_positions(groups: Sequence[ChannelGroup], kept: Kept) -> dict[tuple[str, Axis], Tensor]:
    """(layer, axis) -> positions that go, ascending, over all groups together."""
    found: dict[tuple[str, Axis], list[Tensor]] = {}
    for group in groups:
        if group.id in kept:
            everything = torch.arange(group.width)
            gone = everything[~torch.isin(everything, kept[group.id])]
            for member in group.members:
                found.setdefault((member.layer, member.axis), []).append(member.at(gone))
    return {place: torch.unique(torch.cat(parts)) for place, parts in found.items()}
