"""What a model costs as a function of its groups' widths: MACs, parameters, bytes and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import nn

from deploycompress.contracts import Model
from deploycompress.model.architecture import named_tensors
from deploycompress.pruning.groups import ChannelGroup
from deploycompress.pruning.layers import Axis, Layer, bare_tensor, describe
from deploycompress.pruning.multiplications import multiplications

if TYPE_CHECKING:
    from deploycompress.pruning.blocks import Block

Cost = Mapping[str, float]  # "macs", "params", "size" (bytes), "channels"; other costs may join


class Costs(Protocol):
    """What allocations ask: any number of figures, by name.

    None but a latency grows when a width falls.
    """

    def at(self, widths: Mapping[str, int]) -> Cost:
        """The cost when group ``id`` has ``widths[id]`` channels; a block's width is 0 (out) or 1 (the default)."""
        ...


@dataclass
class _Terms:
    """Tensors whose size is ``coefficient`` times the widths of at most two axes; what one element costs."""

    name: list[str] = field(default_factory=list)
    coefficient: list[float] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    per_element: list[tuple[float, float, float]] = field(default_factory=list)  # MACs, parameters, bytes

    def add(
        self, name: str, coefficient: float, axes: Sequence[int], per_element: tuple[float, float, float]
    ) -> None:
        self.name.append(name)
        self.coefficient.append(coefficient)
        self.first.append(axes[0] if axes else 0)
        self.second.append(axes[1] if len(axes) > 1 else 0)
        self.per_element.append(per_element)


class WidthCosts:
    """Implements ``Costs`` exactly, from one measured pass of the unpruned model at batch size 1.

    MACs are multiply-accumulates of convolutions, linear layers and attention products; those of two activations
    outside of attention whose heads can be pruned are a constant. ``size`` counts the bytes of parameters and
    buffers, ``channels`` those of all groups. ``blocks``: what ``at`` may be told to leave out, as a width of 0.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        model: Model,
        blocks: Sequence[Block] = (),
    ) -> None:
        self._ids = [group.id for group in groups]
        self._widths = np.array([group.width for group in groups], dtype=np.float64)
        self._blocks = [block.id for block in blocks]
        inside = {id: number for number, block in enumerate(blocks, 1) for id in block.groups}
        self._group_block = np.array([inside.get(group.id, 0) for group in groups], dtype=np.int64)
        owners = {owner: g for g in groups if g.heads is not None for owner in g.heads.owners}
        counted = multiplications(module, model, [*owners, *self._blocks])
        self._constant = np.array([counted.elsewhere, 0.0, 0.0])
        # Axis 0 is "no axis": its width is always one.
        self._axis_width: list[float] = [1.0]
        self._per_channel: list[np.ndarray] = [np.zeros(len(groups))]
        terms = _Terms()
        axes = self._add_tensors(module, groups, counted.of_parameter, terms)
        for owner, group in owners.items():
            # Every head multiplies as much as the others: queries by keys, and scores by values.
            axis = axes[group.id, "out"]
            each = counted.within.get(owner, 0.0) / self._axis_width[axis]
            terms.add(f"{owner}.products", 1.0, [axis], (each, 0.0, 0.0))
        for id in self._blocks:
            terms.add(f"{id}.products", 1.0, [], (counted.within.get(id, 0.0), 0.0, 0.0))
        self._coefficient = np.array(terms.coefficient)
        self._first, self._second = np.array(terms.first), np.array(terms.second)
        self._block = np.array([_block_of(name, self._blocks) for name in terms.name], dtype=np.int64)
        self._per_element = np.array(terms.per_element).reshape(-1, 3)
        self._full_axes = np.array(self._axis_width)
        self._share = np.array(self._per_channel).reshape(len(self._axis_width), len(groups))
        self.full: Cost = self.at({group.id: group.width for group in groups})

    def at(self, widths: Mapping[str, int]) -> Cost:
        kept = np.array([widths[id] for id in self._ids], dtype=np.float64)
        axes = self._full_axes - self._share @ (self._widths - kept)
        # Block 0 is "no block": it is always there.
        there = np.array([1, *(widths.get(id, 1) for id in self._blocks)], dtype=np.float64)
        elements = self._coefficient * axes[self._first] * axes[self._second] * there[self._block]
        macs, params, size = self._constant + elements @ self._per_element
        return {
            "macs": float(round(macs)),
            "params": float(round(params)),
            "size": float(round(size)),
            "channels": float(kept @ there[self._group_block]),
        }

    def _add_tensors(
        self, module: nn.Module, groups: Sequence[ChannelGroup], macs: Mapping[str, float], terms: _Terms
    ) -> dict[tuple[str, Axis], int]:
        parts: dict[str, Layer | str] = {name: describe(part) for name, part in module.named_modules()}
        bare = {m.layer: m.dim for g in groups for m in g.members if m.dim is not None}
        axes = self._axes(parts, bare, module, groups)
        seen: set[int] = set()
        for name, tensor, kind in named_tensors(module):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            owner, _, leaf = name.rpartition(".")
            layer = parts[owner]
            dims: Mapping[Axis, int] = layer.tensors.get(leaf, {}) if isinstance(layer, Layer) else {}
            used = [axes[owner, axis] for axis in dims if (owner, axis) in axes]
            if name in bare:
                used = [axes[name, "out"]]
            widths = [self._axis_width[i] for i in used]
            each = macs.get(name, 0.0) / max(1, tensor.numel())
            sizes = (each, float(kind == "parameter"), float(tensor.element_size()))
            terms.add(name, tensor.numel() / prod(widths), used, sizes)
        return axes

    def _axes(
        self,
        parts: Mapping[str, Layer | str],
        bare: Mapping[str, int],
        module: nn.Module,
        groups: Sequence[ChannelGroup],
    ) -> dict[tuple[str, Axis], int]:
        """Number every axis that a group reaches, and note how much of it one channel of each group is."""
        found: dict[tuple[str, Axis], int] = {}
        for g, group in enumerate(groups):
            for member in group.members:
                place = (member.layer, member.axis)
                if place not in found:
                    layer = parts.get(member.layer)
                    if member.layer in bare:
                        width = bare_tensor(module, member.layer).shape[bare[member.layer]]
                    else:
                        assert isinstance(layer, Layer)
                        width = layer.widths[member.axis]
                    found[place] = len(self._axis_width)
                    self._axis_width.append(float(width))
                    self._per_channel.append(np.zeros(len(groups)))
                self._per_channel[found[place]][g] += len(member.positions) / group.width
        return found


def count(module: nn.Module, model: Model) -> Cost:
    """MACs, parameters and bytes of ``module`` as it is."""
    full = WidthCosts(module, (), model).full
    return {name: value for name, value in full.items() if name != "channels"}


def _block_of(name: str, blocks: Sequence[str]) -> int:
    """The place, from 1, of the block that a path lies in; 0 outside of all."""
    return next((i for i, id in enumerate(blocks, 1) if name.startswith(f"{id}.")), 0)
