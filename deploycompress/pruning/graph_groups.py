"""Dependency groups from Torch-Pruning's graph, for what labels do not show."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from deploycompress.contracts import Model
from deploycompress.errors import StageFailed
from deploycompress.pruning.closure import NotFollowed, Reached, closure
from deploycompress.pruning.dependency_graph import is_bare_parameter, is_output, trace
from deploycompress.pruning.groups import ChannelGroup, Member, Unpruned
from deploycompress.pruning.layers import Axis, Layer, describe
from deploycompress.pruning.segments import Uneven, segments, shared_layers

ROOTS = (_ConvNd, nn.Linear)


class _LeftWhole(Exception):
    """Why a group is not pruned."""


def trace_groups(
    module: nn.Module, model: Model, exclude: Sequence[str] = ()
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    """The groups as the trace shows them, not yet tried out; and the layers in no group."""
    traced = copy.deepcopy(module).cpu().eval()
    names = {part: name for name, part in traced.named_modules()}
    roots = {name: part for name, part in traced.named_modules() if isinstance(part, ROOTS)}
    try:
        graph = trace(traced, model)
    except StageFailed as error:
        return [], [Unpruned(name, str(error)) for name in roots]
    walk = _Walk(graph, names)
    for name, part in roots.items():
        walk.visit(name, part, exclude)
    return walk.groups, walk.unpruned


class _Walk:
    """Goes over the layers in order; a layer whose outputs are in a group already is passed over."""

    def __init__(self, graph: Any, names: dict[nn.Module, str]) -> None:
        self.graph, self.names = graph, names
        self.groups: list[ChannelGroup] = []
        self.unpruned: list[Unpruned] = []
        self.owners: dict[tuple[str, Axis], dict[int, str]] = {}  # whose each position is
        self.seen: set[str] = set()
        self.shared = shared_layers(graph.model)

    def visit(self, name: str, part: nn.Module, exclude: Sequence[str]) -> None:
        if name in self.seen:
            return
        self.seen.add(name)
        try:
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
            self.groups.append(
                ChannelGroup(name, width, tuple(members), segments(members, width, self._layer))
            )
        except (_LeftWhole, Uneven) as reason:
            self.unpruned.append(Unpruned(name, str(reason)))

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
                found.append(Member(name, "out", channels, positions, place.node.pruning_dim))
            elif place.node.module in self.names:
                name = self.names[place.node.module]
                layer = self._layer(name)
                if isinstance(layer, Layer) and place.axis in layer.widths:
                    found.append(Member(name, place.axis, channels, positions))
        return found

    def _layer(self, name: str) -> Layer | str:
        return describe(self.graph.model.get_submodule(name))

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
        layer = self._layer(self.names[node.module]) if node.module in self.names else None
        return layer.widths.get(axis) if isinstance(layer, Layer) else None
