"""Dependency groups from labels: a channel is a class of labels that go together."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from deploycompress.contracts import Model
from deploycompress.pruning.attention.trial import Attention
from deploycompress.pruning.groups import ChannelGroup, Member, Unpruned
from deploycompress.pruning.labels import FREE
from deploycompress.pruning.layers import describe
from deploycompress.pruning.places import Place, Places
from deploycompress.pruning.propagation import Heads, propagate
from deploycompress.pruning.segments import Uneven, segments
from deploycompress.pruning.shared import shared_layers, tie_shared


class _LeftWhole(Exception):
    """Why a group is not pruned."""


def labelled_groups(
    module: nn.Module,
    model: Model,
    roots: Sequence[str],
    attention: Sequence[Attention] = (),
    exclude: Sequence[str] = (),
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    """The groups as labels show them, not yet tried out; and those of the layers ``roots`` that are in none.

    ``attention`` whose layout is known has groups of whole heads; all other layers follow the labels.
    """
    traced = copy.deepcopy(module).cpu().eval()
    heads = {a.path: a.layout.group(a.path) for a in attention if a.layout is not None}
    outlets = {
        a.path: a.layout.width for a in attention if a.layout is not None and a.layout.projection is None
    }
    try:
        places = propagate(traced, model, Heads(_claimed(heads.values()), outlets))
        tie_shared(traced, places)
    except Exception as error:  # the model's own forward may raise anything
        first = (str(error).strip().splitlines() or ["no message"])[0]
        reason = f"the model cannot be traced: {type(error).__name__}: {first}"
        return [], [Unpruned(name, reason) for name in roots]
    channels = _Channels(traced, places, exclude)
    groups, unpruned = [], []
    for path, group in heads.items():
        try:
            groups.append(channels.heads(path, group))
        except _LeftWhole as reason:
            made = dict.fromkeys(m.layer for m in group.members if m.axis == "out" and m.layer in roots)
            unpruned += [Unpruned(name, str(reason)) for name in made]
    # Narrow ones first: a layer whose channels two others make is in the groups of both.
    order = {name: i for i, name in enumerate(roots)}
    for name in sorted(roots, key=lambda n: (channels.width(n), order[n])):
        try:
            found = channels.group(name)
            if found is not None:
                groups.append(found)
        except _LeftWhole as reason:
            unpruned.append(Unpruned(name, str(reason)))
    groups.sort(key=lambda g: order[g.id])
    return groups, unpruned


def _claimed(heads: Iterable[ChannelGroup]) -> dict[Place, Tensor]:
    found: dict[Place, list[Tensor]] = defaultdict(list)
    for group in heads:
        for member in group.members:
            found[member.layer, member.axis if member.dim is None else member.dim].append(member.positions)
    return {place: torch.unique(torch.cat(parts)) for place, parts in found.items()}


class _Channels:
    """The classes of labels, and where each of them lies."""

    def __init__(self, module: nn.Module, places: Places, exclude: Sequence[str]) -> None:
        self.module, self.places, self.exclude = module, places, exclude
        self.class_of, self.frozen = places.ties.classes()
        self.shared = shared_layers(module)
        self.taken: set[int] = set()  # classes that are in groups
        self.where: dict[int, list[tuple[Place, np.ndarray]]] = defaultdict(list)
        for place, labels in places.labels.items():
            classes = np.where(labels.numpy() == FREE, -1, self.class_of[labels.numpy()])
            name, axis = place
            if axis != "heads":
                for found, positions in _positions(classes).items():
                    self.where[found].append((place, positions))
            reason = None if isinstance(axis, int) else self._reason(name, axis == "out")
            if reason is not None:
                self._freeze(classes, reason)
        self._freeze_crossed([place for place in places.labels if isinstance(place[1], int)])

    def _reason(self, name: str, out: bool) -> str | None:
        """Why the channels of a layer may not go, whatever they hang together with."""
        if out and any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return f"excluded by the configuration ({name})"
        return None

    def _freeze_crossed(self, bare: Sequence[Place]) -> None:
        """A bare tensor is cut along one dimension."""
        met: dict[str, list[np.ndarray]] = defaultdict(list)
        for place in bare:
            labels = self.places.labels[place].numpy()
            classes = self.class_of[labels[labels != FREE]]
            if any(len(self.where[c]) > 1 for c in np.unique(classes).tolist()):
                met[place[0]].append(classes)
        for name, several in met.items():
            if len(several) > 1:
                self._freeze(np.concatenate(several), f"{name} has them along {len(several)} dimensions")

    def _freeze(self, classes: np.ndarray, reason: str) -> None:
        for found in np.unique(classes[classes >= 0]).tolist():
            self.frozen.setdefault(found, reason)

    def width(self, root: str) -> int:
        labels = self.places.labels.get((root, "out"))
        return 0 if labels is None else len(labels)

    # ------------------------------------------------------------ groups

    def heads(self, path: str, group: ChannelGroup) -> ChannelGroup:
        """A group of heads with what reads them outside of their module. Raises _LeftWhole."""
        members = [replace(m, kind=self._kind(m)) for m in group.members]
        for member in members:
            if member.layer in self.shared:
                raise _LeftWhole(f"{member.layer} shares its weight with {self.shared[member.layer]}")
            reason = self._reason(member.layer, member.axis == "out")
            if reason is not None:
                raise _LeftWhole(reason)
        outlet = self.places.labels.get((path, "heads"))
        if outlet is not None:
            ordered = self._unfrozen(outlet.numpy())
            members += self._members({c: i for i, c in enumerate(ordered)})
            if len(ordered) != group.width or self._segments(members, group.width).any():
                raise _LeftWhole(f"its heads are not all that its channels hang together with in {path}")
            self.taken.update(ordered)
        return replace(group, members=tuple(members))

    def group(self, root: str) -> ChannelGroup | None:
        """The channels of ``root``; None where they are in groups already. Raises _LeftWhole."""
        if root not in self.places.reached:
            raise _LeftWhole(
                "the trace does not reach it: its forward is not called, or not by the module itself"
            )
        labels = self.places.labels[root, "out"].numpy()
        if not labels.any() and (root, "out") in self.places.claimed:
            return None
        if (labels == FREE).any():
            raise _LeftWhole("its channels come from something that is not pruned")
        ordered = self._unfrozen(labels)
        done = [c for c in ordered if c in self.taken]
        if len(done) == len(ordered):
            return None
        if len(ordered) < 2:
            raise _LeftWhole(f"its {len(labels)} channels go together")
        if done:  # the others are a group of their own
            ordered = [c for c in ordered if c not in self.taken]
        if len(ordered) < 2:
            raise _LeftWhole("all but one of its channels are in other groups")
        members = self._members({c: i for i, c in enumerate(ordered)})
        parts = self._segments(members, len(ordered))
        self.taken.update(ordered)
        return ChannelGroup(root, len(ordered), tuple(members), parts)

    def _unfrozen(self, labels: np.ndarray) -> list[int]:
        """The classes of these labels, in the order in which they are met. Raises _LeftWhole."""
        ordered = list(dict.fromkeys(self.class_of[labels].tolist()))
        reason = next((self.frozen[c] for c in sorted(ordered) if c in self.frozen), None)
        if reason is not None:
            raise _LeftWhole(reason)
        return ordered

    def _members(self, number: dict[int, int]) -> list[Member]:
        found: dict[Place, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for label, channel in number.items():
            for place, positions in self.where[label]:
                channels, all_positions = found.setdefault(place, ([], []))
                channels.append(np.full(len(positions), channel))
                all_positions.append(positions)
        members = []
        for (name, axis), (channels, at) in found.items():
            one, other = torch.from_numpy(np.concatenate(channels)), torch.from_numpy(np.concatenate(at))
            if isinstance(axis, int):
                member = Member(name, "out", one, other, axis)
            else:
                assert axis != "heads"
                member = Member(name, axis, one, other)
            members.append(replace(member, kind=self._kind(member)))
        return members

    def _segments(self, members: list[Member], width: int) -> Tensor:
        try:
            return segments(members, width, lambda name: describe(self.module.get_submodule(name)))
        except Uneven as error:
            raise _LeftWhole(str(error)) from error

    def _kind(self, member: Member) -> str:
        return (
            "Parameter" if member.dim is not None else type(self.module.get_submodule(member.layer)).__name__
        )


def _positions(classes: np.ndarray) -> dict[int, np.ndarray]:
    """Class -> the positions at which it lies; nothing for a tensor without channels."""
    if not classes.size:
        return {}
    order = np.argsort(classes, kind="stable")
    values, starts = np.unique(classes[order], return_index=True)
    return {
        int(value): part
        for value, part in zip(values, np.split(order, starts[1:]), strict=True)
        if value >= 0
    }
