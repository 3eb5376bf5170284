"""The dependency groups of a model, each one tried out; what cannot be pruned is named with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deploycompress.contracts import Model
from deploycompress.errors import StageFailed
from deploycompress.pruning.attention.around import explained, recurrent, trace_around
from deploycompress.pruning.attention.stand_in import Traceable
from deploycompress.pruning.attention.trial import Attention, find_attention
from deploycompress.pruning.closure import NotFollowed, Reached, closure
from deploycompress.pruning.dependency_graph import is_bare_parameter, is_output
from deploycompress.pruning.groups import ChannelGroup, Found, Member, Unpruned
from deploycompress.pruning.layers import Axis, Layer, describe, is_transposed_linear
from deploycompress.pruning.screening import screen

ROOTS = (_ConvNd, nn.Linear, nn.MultiheadAttention)


class _LeftWhole(Exception):
    """Why a group is not pruned."""


def find_groups(module: nn.Module, model: Model, exclude: Sequence[str] = ()) -> Found:
    """Every group of ``module`` that can be pruned: traced, checked and tried out on random inputs.

    ``exclude``: patterns (``layer4.*``) of layers whose output channels stay. Nothing is raised for a model
    that cannot be pruned: all its layers are then left whole.
    """
    attention = find_attention(module, model)
    candidates, unpruned = _traced_groups(module, model, exclude, attention)
    good, failed = screen(module, model, candidates)
    order = {name: i for i, (name, _) in enumerate(module.named_modules())}
    every = sorted(explained([*unpruned, *failed], attention), key=lambda u: order.get(u.layer, -1))
    return Found(tuple(good), tuple(every))


def trace_groups(
    module: nn.Module, model: Model, exclude: Sequence[str] = ()
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    """The groups as the trace shows them, not yet tried out; and the layers in no group."""
    return _traced_groups(module, model, exclude, find_attention(module, model))


def _traced_groups(
    module: nn.Module, model: Model, exclude: Sequence[str], attention: Sequence[Attention]
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    roots = [name for name, _ in producing_layers(module)]
    try:
        graph, traceable = trace_around(module, model, attention)
    except StageFailed as error:
        return [], [Unpruned(name, str(error)) for name in roots]
    walk = _Walk(graph, traceable, module)
    parts: dict[str, nn.Module] = {}
    for part, name in traceable.names.items():
        parts.setdefault(name, part)
    for name in roots:
        walk.visit(name, parts.get(name), exclude)
    return walk.groups, [*walk.unpruned, *recurrent(module)]


class _Walk:
    """Goes over the layers in order; a layer whose outputs are in a group already is passed over."""

    def __init__(self, graph: Any, traceable: Traceable, module: nn.Module) -> None:
        self.graph, self.traceable, self.names, self.module = graph, traceable, traceable.names, module
        self.groups: list[ChannelGroup] = []
        self.unpruned: list[Unpruned] = []
        self.owners: dict[tuple[str, Axis], dict[int, str]] = {}  # whose each position is
        self.seen: set[str] = set()
        self.shared = _shared(module)

    def visit(self, name: str, part: nn.Module | None, exclude: Sequence[str]) -> None:
        if name in self.seen:
            return
        self.seen.add(name)
        try:
            if part is None:
                raise _LeftWhole("it lies in attention, of which whole heads are pruned and nothing else")
            if part not in self.graph.module2node:
                raise _LeftWhole(
                    "the trace does not reach it: its forward is not called, or not by the module itself"
                )
            reached = self._reached(part)
            members = self._members(reached)
            self.seen.update(m.layer for m in members if m.axis == "out")
            self._refuse(reached, members, exclude)
            self._claim(name, members)
            width = members[0].channels.numel()
            segments = _segments(members, width, self._layer)
            self.groups.append(self._with_heads(ChannelGroup(name, width, tuple(members), segments)))
        except _LeftWhole as reason:
            self.unpruned.append(Unpruned(name, str(reason)))

    def _with_heads(self, group: ChannelGroup) -> ChannelGroup:
        """Where the group's root projects to queries, keys or values: whole heads, and all that has them."""
        path, layout = self.traceable.layouts.get(group.id, ("", None))
        if layout is None:
            return group
        if group.width != layout.width or group.segment_count > 1:
            raise _LeftWhole(f"its heads are not all that its channels hang together with in {path}")
        others = layout.others_at(path)
        self.seen.update(member.layer for member in others)
        return replace(group, members=(*group.members, *others), heads=layout.heads(path))

    def _reached(self, part: nn.Module) -> list[Reached]:
        try:
            return closure(self.graph, part, self._width_at)
        except NotFollowed as error:
            raise _LeftWhole(f"its dependencies cannot be followed: {error}") from error

    def _refuse(self, reached: list[Reached], members: list[Member], exclude: Sequence[str]) -> None:
        if any(is_output(place.node) for place in reached):
            raise _LeftWhole("its channels are the model's outputs")
        for member in members:
            if member.axis == "out" and any(fnmatchcase(member.layer, pattern) for pattern in exclude):
                raise _LeftWhole(f"excluded by the configuration ({member.layer})")
            if member.layer in self.shared:
                raise _LeftWhole(f"{member.layer} shares its weight with {self.shared[member.layer]}")
        for place in reached:
            name = self.names.get(place.node.module)
            layer_or_reason = self._layer(name) if name is not None else None
            if isinstance(layer_or_reason, str):
                raise _LeftWhole(f"tied to {name}: {layer_or_reason}")
            part = place.node.module
            if isinstance(part, _ConvNd) and 1 < part.groups == part.out_channels != part.in_channels:
                # Torch-Pruning takes it for a depthwise one, whose inputs are its outputs.
                raise _LeftWhole(
                    f"tied to {name}: a convolution of {part.groups} groups with one output each"
                )

    def _members(self, reached: list[Reached]) -> list[Member]:
        found = []
        for place in reached:
            channels, positions = torch.from_numpy(place.channels), torch.from_numpy(place.positions)
            if is_bare_parameter(place.node):
                name = self.graph._param_to_name[place.node.module]
                found.append(Member(name, "out", channels, positions, place.node.pruning_dim, "Parameter"))
            elif place.node.module in self.names:
                name = self.names[place.node.module]
                layer = self._layer(name)
                if isinstance(layer, Layer) and place.axis in layer.widths:
                    if place.axis == "out" and place.node.module in self.traceable.positions:
                        positions = self.traceable.positions[place.node.module][positions]
                    kind = type(place.node.module).__name__
                    found.append(Member(name, place.axis, channels, positions, kind=kind))
        return _once(found)

    def _layer(self, name: str) -> Layer | str:
        return describe(self.module.get_submodule(name))

    def _claim(self, id: str, members: list[Member]) -> None:
        """Every position of every axis belongs to one channel of one group. Raises _LeftWhole otherwise."""
        for member in members:
            if len(torch.unique(member.positions)) < len(member.positions):
                where = "" if member.layer == id else f" in {member.layer}"
                raise _LeftWhole(f"a reshape lets several of its channels fall together{where}")
            owned = self.owners.get((member.layer, member.axis), {})
            other = next((owned[p] for p in member.positions.tolist() if p in owned), None)
            if other is not None:
                raise _LeftWhole(f"shares channels of {member.layer} with {other}")
        for member in members:
            owned = self.owners.setdefault((member.layer, member.axis), {})
            owned.update(dict.fromkeys(member.positions.tolist(), id))

    def _width_at(self, node: Any, axis: Axis) -> int | None:
        if is_bare_parameter(node):
            return int(node.module.shape[node.pruning_dim])
        layer = describe(node.module) if node.module in self.names else None
        return layer.widths.get(axis) if isinstance(layer, Layer) else None


def _once(members: list[Member]) -> list[Member]:
    """Packed queries, keys and values read the same: one layer's inputs are one member."""
    kept: list[Member] = []
    for member in members:
        same = [m for m in kept if (m.layer, m.axis) == (member.layer, member.axis)]
        if not any(
            torch.equal(m.positions, member.positions) and torch.equal(m.channels, member.channels)
            for m in same
        ):
            kept.append(member)
    return kept


def _shared(module: nn.Module) -> dict[str, str]:
    """Layer -> another layer that uses one of its parameters too."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            other = first.setdefault(id(parameter), name)
            if other != name:
                found |= {name: other, other: name}
    return found


def _segments(members: list[Member], width: int, layers: Any) -> Tensor:
    """[width] which segment each channel is in. Raises _LeftWhole when the segments are not equally large.

    Two channels are in one segment when every member has them in the same runs, and equally often: then a
    width alone says how many positions of every axis stay.
    """
    labels: list[tuple[Any, ...]] = [() for _ in range(width)]
    for member in members:
        run_size = _run_size(member, layers)
        runs: list[list[int]] = [[] for _ in range(width)]
        for channel, position in zip(member.channels.tolist(), member.positions.tolist(), strict=True):
            runs[channel].append(position // run_size)
        labels = [(*label, *sorted(run), None) for label, run in zip(labels, runs, strict=True)]
    distinct = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    segments = torch.tensor([distinct[label] for label in labels])
    sizes = segments.bincount().tolist()
    if len(set(sizes)) > 1:
        raise _LeftWhole(f"its channels go separate ways in unequal parts ({_some(sizes)})")
    if sizes[0] == 1:
        raise _LeftWhole(f"each of its {width} channels goes a way of its own")
    return segments


def _run_size(member: Member, layers: Any) -> int:
    """Positions of one run of a grouped layer; more than there are where all of them are one run."""
    if member.dim is not None:
        return 2**62
    layer = layers(member.layer)
    assert isinstance(layer, Layer)
    return layer.widths[member.axis] // layer.runs if layer.runs > 1 else 2**62


def _some(sizes: list[int]) -> str:
    return " + ".join(map(str, sizes[:6])) + (" ..." if len(sizes) > 6 else "")


def producing_layers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Path and output width of every convolution and linear layer, in order; of packed attention too."""
    for name, part in module.named_modules():
        if isinstance(part, ROOTS) or is_transposed_linear(part):
            layer = describe(part)
            if isinstance(layer, Layer):
                yield name, layer.widths["out"]
            elif not isinstance(part, nn.MultiheadAttention):
                yield name, int(part.weight.shape[0])
