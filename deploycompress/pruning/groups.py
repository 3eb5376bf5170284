"""A dependency group: channels that can only be removed together, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, lcm

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


@dataclass(frozen=True)
class Size:
    """A number that the module ``owner`` keeps in an attribute because its forward asks for a width.

    ``amount`` of it are channels of the group that has this, and fall in proportion with the group's width.
    ``index``: its place in a tuple or list.
    """

    owner: str  # module path
    attribute: str
    amount: int
    index: int | None = None


@dataclass(frozen=True, eq=False)
class Heads:
    """Channels that stay or go in whole attention heads.

    ``units`` [width]: which head (or heads that share keys) each channel is of; of one segment all are equally wide.
    """

    owners: tuple[str, ...]  # paths of the attention modules
    units: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """``width`` channels; ``id`` is the path of the first layer that makes them.

    ``segments`` [width]: channels of one segment can stand for each other; every segment keeps the same share
    (the runs of a grouped convolution, the halves of a chunk, the parts of a split).
    ``grid``: the widths that may be chosen, ascending; the last one is ``width``.
    """

    id: str
    width: int
    members: tuple[Member, ...]
    segments: Tensor
    grid: tuple[int, ...] = ()
    heads: Heads | None = None  # None: every channel stays or goes by itself
    sizes: tuple[Size, ...] = ()

    @property
    def segment_count(self) -> int:
        return int(self.segments.max()) + 1

    @property
    def topology(self) -> tuple[tuple[str, str], ...]:
        """Kinds and axes of all members: the same for groups whose layers hang together alike."""
        return tuple(sorted((member.kind, member.axis) for member in self.members))

    @property
    def steps(self) -> int:
        """Into how many equal steps the width divides: each of whole units, and of the same share of every segment."""
        return gcd(*self._unit_segments()[1].bincount().tolist())

    @property
    def step(self) -> int:
        """Widths are multiples of it."""
        return self.width // self.steps

    def keep(self, scores: Tensor, width: int) -> Tensor:
        """The ``width`` best channels by ``scores`` [width of the group], the same share of every segment.

        A unit's score is the sum of its channels'. Of equal scores the first stays. Ascending; a smaller width
        keeps a subset of a larger one.
        """
        steps, rest = divmod(width, self.step)
        assert rest == 0, f"{self.id}: {width} channels in steps of {self.step}"
        units, segments = self._unit_segments()
        totals = torch.zeros(len(segments), dtype=scores.dtype).index_add(0, units, scores)
        order = totals.argsort(descending=True, stable=True)
        each = (segments.bincount() // self.steps * steps).tolist()
        chosen = [order[segments[order] == s][:count] for s, count in enumerate(each)]
        return torch.isin(units, torch.cat(chosen)).nonzero().flatten()

    def _unit_segments(self) -> tuple[Tensor, Tensor]:
        """[width] the unit of each channel, and [units] the segment of each unit."""
        if self.heads is None:
            return torch.arange(self.width), self.segments
        units = self.heads.units
        of_unit = torch.zeros(int(units.max()) + 1, dtype=torch.int64)
        return units, of_unit.index_copy(0, units, self.segments)


def joined(groups: Sequence[ChannelGroup]) -> ChannelGroup:
    """``groups`` as one in which each keeps the same share: a tensor is split into equal parts, or has to be as
    wide as another."""
    members: list[Member] = []
    segments: list[Tensor] = []
    units: list[Tensor] = []
    for group in groups:
        first = sum(map(len, segments))
        members += [replace(member, channels=member.channels + first) for member in group.members]
        segments.append(group.segments + (int(segments[-1].max()) + 1 if segments else 0))
        own = torch.arange(group.width) if group.heads is None else group.heads.units
        units.append(own + (int(units[-1].max()) + 1 if units else 0))
    owners = tuple(owner for group in groups if group.heads is not None for owner in group.heads.owners)
    return replace(
        groups[0],
        width=sum(group.width for group in groups),
        members=tuple(members),
        segments=torch.cat(segments),
        heads=Heads(owners, torch.cat(units)) if owners else None,
        sizes=tuple(size for group in groups for size in group.sizes),
    )


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
    align = align if group.heads is None else group.step
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
