"""What may let a module go on whose forward fails on pruned channels: its sizes follow, or groups become one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
from torch import nn

from deploycompress.model.sizes import is_size, may_be_set
from deploycompress.pruning.groups import ChannelGroup, Size, joined
from deploycompress.pruning.layers import Layer, describe

MOST_PARTS = 4  # numbers beside one another that may be the parts of one split
MOST_TOGETHER = 4  # groups that are made one because a module reads and makes all of them

T = TypeVar("T")

# Of whom the positions of an axis are: index of a group, or -1; and how much of a number belongs to which group.
Axis = np.ndarray
Amounts = Mapping[int, int]


@dataclass(frozen=True)
class Change:
    """The groups, changed; ``label`` is the same for the like change to another module of the same class."""

    label: str
    groups: list[ChannelGroup]


@dataclass(frozen=True)
class _Number:
    """A size in an attribute of a module, or one entry of it."""

    attribute: str
    index: int | None
    value: int


def touching(groups: Sequence[ChannelGroup], path: str) -> list[ChannelGroup]:
    """Those with a layer or parameter inside the module at ``path``."""
    return [g for g in groups if any(_inside(member.layer, path) for member in g.members)]


def changes(module: nn.Module, groups: Sequence[ChannelGroup], path: str) -> Iterator[Change]:
    """What could help the module at ``path``, the likeliest first.

    Its sizes are told apart by their values: the parts of a split add up to a layer's width, and each has the
    channels that lie there; any other number is the width of a layer's axis, or of one group's part of it.
    """
    yield from _resized(module, groups, path, "")
    for together in _unions(module, groups, path):
        yield Change("one group", together)
        yield from _resized(module, together, path, "one group, ")


def _resized(module: nn.Module, groups: Sequence[ChannelGroup], path: str, prefix: str) -> Iterator[Change]:
    numbers = _numbers(module.get_submodule(path))
    if not numbers:
        return
    axes = _axes(module, groups, path)
    for run in _runs(numbers):
        parts = [part for axis in axes for part in _split(axis, [n.value for n in run])]
        for amounts in _distinct(parts):
            changed = _told(groups, path, list(zip(run, amounts, strict=True)))
            if changed is not None:
                yield Change(f"{prefix}split {run[0].attribute} {run[0].index}", changed)
    likely: list[tuple[_Number, Amounts]] = []
    for number in numbers:
        for i, share in enumerate(_distinct(_whole(axes, groups, number.value))):
            changed = _told(groups, path, [(number, share)])
            if changed is not None:
                likely += [(number, share)] if i == 0 else []
                yield Change(f"{prefix}{number.attribute} {number.index}", changed)
    every = _told(groups, path, likely) if len(likely) > 1 else None
    if every is not None:  # split(x, [self.part, self.width - self.part])
        yield Change(f"{prefix}every size", every)


def _numbers(part: nn.Module) -> list[_Number]:
    """The sizes that a module keeps and may be told, in the order in which it set them."""
    found = []
    for name, value in vars(part).items():
        if may_be_set(part, name) and is_size(value):
            entries = [(None, value)] if isinstance(value, int) else list(enumerate(value))
            found += [_Number(name, index, entry) for index, entry in entries if entry > 1]
    return found


def _runs(numbers: Sequence[_Number]) -> Iterator[Sequence[_Number]]:
    """What may be the parts of one split: all entries of one attribute, or a few numbers beside one another."""
    for attribute in dict.fromkeys(n.attribute for n in numbers if n.index is not None):
        run = [n for n in numbers if n.attribute == attribute]
        if len(run) > 1:
            yield run
    single = [n for n in numbers if n.index is None]
    for length in range(2, MOST_PARTS + 1):
        for first in range(len(single) - length + 1):
            yield single[first : first + length]


def _axes(module: nn.Module, groups: Sequence[ChannelGroup], path: str) -> list[Axis]:
    """[width] whose each position is, for all axes that groups of the module reach; those inside it first."""
    near = {
        group.id for group in touching(groups, path) or groups
    }  # a reshape may be a module without any layer
    found: dict[tuple[str, str], Axis] = {}
    for i, group in enumerate(groups):
        for member in group.members:
            if member.dim is None:
                place = (member.layer, member.axis)
                if place not in found:
                    layer = describe(module.get_submodule(member.layer))
                    assert isinstance(layer, Layer)
                    found[place] = np.full(layer.widths[member.axis], -1)
                found[place][member.positions.numpy()] = i
    ordered = [axis for _, axis in sorted(found.items(), key=lambda item: not _inside(item[0][0], path))]
    distinct = {axis.tobytes(): axis for axis in ordered}.values()
    return [axis for axis in distinct if any(i >= 0 and groups[i].id in near for i in np.unique(axis))]


def _split(axis: Axis, sizes: Sequence[int]) -> Iterator[list[Amounts]]:
    """What lies in each of the parts, when they are the whole axis."""
    if sum(sizes) == len(axis):
        yield [_counted(axis[a:b]) for a, b in pairwise(accumulate(sizes, initial=0))]


def _whole(axes: Sequence[Axis], groups: Sequence[ChannelGroup], value: int) -> Iterator[Amounts]:
    """What a number may be: a whole axis, one group's part of one, its width or that of a segment of it."""
    for axis in axes:
        if len(axis) == value:
            yield _counted(axis)
    for axis in axes:
        yield from ({i: n} for i, n in _counted(axis).items() if n == value)
    for i in sorted({i for axis in axes for i in np.unique(axis).tolist() if i >= 0}):
        if value in (groups[i].width, *groups[i].segments.bincount().tolist()):
            yield {i: value}


def _counted(positions: Axis) -> Amounts:
    owners, counts = np.unique(positions[positions >= 0], return_counts=True)
    return dict(zip(owners.tolist(), counts.tolist(), strict=True))


def _told(
    groups: Sequence[ChannelGroup], path: str, amounts: Sequence[tuple[_Number, Amounts]]
) -> list[ChannelGroup] | None:
    """The groups with these sizes; None where a size would not stay whole, or they have all of them already."""
    changed = list(groups)
    for number, shares in amounts:
        for i, amount in shares.items():
            if amount % changed[i].steps:
                return None
            known = {(s.owner, s.attribute, s.index) for s in changed[i].sizes}
            if (path, number.attribute, number.index) not in known:
                size = Size(path, number.attribute, amount, number.index)
                changed[i] = replace(changed[i], sizes=(*changed[i].sizes, size))
    return changed if any(a is not b for a, b in zip(changed, groups, strict=True)) else None


def _unions(module: nn.Module, groups: Sequence[ChannelGroup], path: str) -> Iterator[list[ChannelGroup]]:
    """Groups at the module made one: those that share an axis of some layer, or all that are there.

    The like at all modules of its class at once, or at this one alone.
    """
    kind = type(module.get_submodule(path))
    alike = [name for name, part in module.named_modules() if type(part) is kind and not _is_torchs(kind)]
    for paths in _distinct((alike, [path])):
        here = [touching(groups, name) for name in paths]
        for together in _distinct(([_sharing(found) for found in here], here)):
            united = _united(groups, [found for found in together if 1 < len(found) <= MOST_TOGETHER])
            if united is not None:
                yield united


def _is_torchs(kind: type[nn.Module]) -> bool:
    """A container or the like, which says nothing of what is in it."""
    return kind.__module__.startswith("torch.")


def _united(
    groups: Sequence[ChannelGroup], together: Sequence[Sequence[ChannelGroup]]
) -> list[ChannelGroup] | None:
    """``groups`` with one in the place of each of these sets and of those that overlap; None without a change."""
    first = {group.id: group.id for group in groups}
    for several in together:
        ids = {first[group.id] for group in several}
        lowest = next(group.id for group in groups if first[group.id] in ids)
        first |= {id: lowest for id, known in first.items() if known in ids}
    sets = [[g for g in groups if first[g.id] == id] for id in dict.fromkeys(first.values())]
    united = [found[0] if len(found) == 1 else joined(found) for found in sets]
    return united if len(united) < len(groups) and all(group.steps > 1 for group in united) else None


def _sharing(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    return [g for g in groups if any(_share_an_axis(g, other) for other in groups if other is not g)]


def _share_an_axis(one: ChannelGroup, other: ChannelGroup) -> bool:
    places = {(m.layer, m.axis) for m in one.members}
    return any((m.layer, m.axis) in places for m in other.members)


def _inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _distinct(found: Iterable[T]) -> list[T]:
    kept: list[T] = []
    for item in found:
        if item and item not in kept:
            kept.append(item)
    return kept
