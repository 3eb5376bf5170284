"""Dependency groups from labels: a channel is a class of labels that go together."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from deploycompress.contracts import Model
from deploycompress.pruning.groups import ChannelGroup, Member, Unpruned
from deploycompress.pruning.labels import FREE
from deploycompress.pruning.layers import Layer, describe
from deploycompress.pruning.operators import Place
from deploycompress.pruning.propagation import Trace, propagate
from deploycompress.pruning.segments import Uneven, segments, shared_layers

ROOTS = (_ConvNd, nn.Linear)


class _LeftWhole(Exception):
    """Why a group is not pruned."""


def labelled_groups(
    module: nn.Module, model: Model, exclude: Sequence[str] = ()
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    """The groups as the labels show them, not yet tried out; and the layers in no group."""
    traced = copy.deepcopy(module).cpu().eval()
    roots = {name: part for name, part in traced.named_modules() if isinstance(part, ROOTS)}
    try:
        trace = propagate(traced, model)
    except Exception as error:  # the model's own forward may raise anything
        first = (str(error).strip().splitlines() or ["no message"])[0]
        reason = f"the model cannot be traced: {type(error).__name__}: {first}"
        return [], [Unpruned(name, reason) for name in roots]
    channels = _Channels(traced, trace, exclude)
    groups, unpruned, taken = [], [], set[int]()
    # Narrow ones first: a layer whose channels two others make is in the groups of both.
    order = {name: i for i, name in enumerate(roots)}
    for name in sorted(roots, key=lambda n: (channels.width(n), order[n])):
        try:
            group = channels.group(name, taken)
            if group is not None:
                groups.append(group)
        except _LeftWhole as reason:
            unpruned.append(Unpruned(name, str(reason)))
    groups.sort(key=lambda g: order[g.id])
    return groups, unpruned


class _Channels:
    """The classes of labels, and where each of them lies."""

    def __init__(self, module: nn.Module, trace: Trace, exclude: Sequence[str]) -> None:
        self.module, self.trace = module, trace
        self.class_of, self.frozen = trace.ties.classes()
        self.places: dict[int, list[tuple[Place, np.ndarray]]] = defaultdict(list)
        bare = {place for place in trace.places if isinstance(place[1], int)}
        shared = shared_layers(module)
        for place, labels in trace.places.items():
            classes = np.where(labels.numpy() == FREE, -1, self.class_of[labels.numpy()])
            for found, positions in _positions(classes).items():
                self.places[found].append((place, positions))
            name, axis = place
            if place in bare:
                continue
            if name in shared:
                self._freeze(classes, f"{name} shares its weight with {shared[name]}")
            if axis == "out" and any(fnmatchcase(name, pattern) for pattern in exclude):
                self._freeze(classes, f"excluded by the configuration ({name})")

        self._freeze_crossed(bare)

    def _freeze_crossed(self, bare: set[Place]) -> None:
        """A bare tensor is cut along one dimension."""
        met: dict[str, list[np.ndarray]] = defaultdict(list)
        for place in bare:
            classes = self.class_of[self.trace.places[place].numpy()]
            if any(len(self.places[c]) > 1 for c in np.unique(classes).tolist()):
                met[place[0]].append(classes)
        for name, several in met.items():
            if len(several) > 1:
                self._freeze(np.concatenate(several), f"{name} has them along {len(several)} dimensions")

    def _freeze(self, classes: np.ndarray, reason: str) -> None:
        for found in np.unique(classes[classes >= 0]).tolist():
            self.frozen.setdefault(found, reason)

    def width(self, root: str) -> int:
        labels = self.trace.places.get((root, "out"))
        return 0 if labels is None else len(labels)

    def group(self, root: str, taken: set[int]) -> ChannelGroup | None:
        """The channels of ``root``; None where they are in groups already. Raises _LeftWhole."""
        if root not in self.trace.reached:
            raise _LeftWhole(
                "the trace does not reach it: its forward is not called, or not by the module itself"
            )
        labels = self.trace.places[root, "out"].numpy()
        if (labels == FREE).any():
            raise _LeftWhole("its channels come from something that is not pruned")
        classes = np.unique(self.class_of[labels])
        reason = next((self.frozen[c] for c in classes.tolist() if c in self.frozen), None)
        if reason is not None:
            raise _LeftWhole(reason)
        done = [c for c in classes.tolist() if c in taken]
        if len(done) == len(classes):
            return None
        if done:
            raise _LeftWhole("some of its channels are in another group")
        ordered = list(dict.fromkeys(self.class_of[labels].tolist()))
        if len(ordered) < 2:
            raise _LeftWhole(f"its {len(labels)} channels go together")
        members = self._members({c: i for i, c in enumerate(ordered)})
        try:
            parts = segments(members, len(ordered), lambda name: describe(self.module.get_submodule(name)))
        except Uneven as error:
            raise _LeftWhole(str(error)) from error
        taken.update(ordered)
        return ChannelGroup(root, len(ordered), tuple(members), parts)

    def _members(self, number: dict[int, int]) -> list[Member]:
        found: dict[Place, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for label, channel in number.items():
            for place, positions in self.places[label]:
                channels, all_positions = found.setdefault(place, ([], []))
                channels.append(np.full(len(positions), channel))
                all_positions.append(positions)
        members = []
        for (name, axis), (channels, at) in found.items():
            one, other = torch.from_numpy(np.concatenate(channels)), torch.from_numpy(np.concatenate(at))
            if isinstance(axis, int):
                members.append(Member(name, "out", one, other, axis))
            else:
                layer = describe(self.module.get_submodule(name))
                assert isinstance(layer, Layer)
                members.append(Member(name, axis, one, other))
        return members


def _positions(classes: np.ndarray) -> dict[int, np.ndarray]:
    """Class -> the positions at which it lies."""
    order = np.argsort(classes, kind="stable")
    values, starts = np.unique(classes[order], return_index=True)
    return {
        int(value): part
        for value, part in zip(values, np.split(order, starts[1:]), strict=True)
        if value >= 0
    }
