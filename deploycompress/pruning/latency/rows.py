"""Each operator of a model with the groups that set its widths: the rows of its latency table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from deploycompress.contracts import Model
from deploycompress.graph.operators import Operator, operators
from deploycompress.pruning.axes import AxisWidth, axis_widths
from deploycompress.pruning.groups import ChannelGroup
from deploycompress.pruning.latency.table import Grid, Latencies

LEVELS = 8  # widths of a group that the table and the solver know, at most
SUMMED_LEVELS = 6  # of an axis that several groups lie on, whose widths add up in too many ways to measure


@dataclass(frozen=True)
class Row:
    """One operator; ``inputs`` and ``outputs`` are None where no group sets that width."""

    operator: Operator
    inputs: AxisWidth | None
    outputs: AxisWidth | None

    @property
    def groups(self) -> tuple[str, ...]:
        """Ids of the groups that its widths depend on."""
        axes = [axis for axis in (self.inputs, self.outputs) if axis is not None]
        return tuple(dict.fromkeys(id for axis in axes for id in axis.per_channel))

    def widths(self, chosen: Mapping[str, int], full: Mapping[str, int]) -> tuple[float, float]:
        """Channels in and out when group ``id`` has ``chosen[id]`` of its ``full[id]`` channels.

        A module may use a part of a weight in one call (the queries of a packed projection): it gets its
        share of the axis.
        """
        c_in, c_out = float(self.operator.c_in), float(self.operator.c_out)
        if self.inputs is not None:
            c_in *= self.inputs.at(chosen, full) / self.inputs.full
        if self.outputs is not None:
            c_out *= self.outputs.at(chosen, full) / self.outputs.full
        return (c_out, c_out) if self.operator.depthwise else (c_in, c_out)

    def points(self, groups: Mapping[str, ChannelGroup]) -> list[Operator]:
        """The operator at every width that is to be measured."""
        outputs = _levels(self.operator.c_out, self.outputs, groups)
        if self.operator.depthwise:
            return [self.operator.at(width, width) for width in outputs]
        inputs = _levels(self.operator.c_in, self.inputs, groups)
        runs = self.operator.groups
        return [self.operator.at(a, b) for a in inputs for b in outputs if a % runs == 0 and b % runs == 0]

    def grid(self, groups: Mapping[str, ChannelGroup], latencies: Latencies) -> Grid:
        """Its part of the table."""
        found = {(p.c_in, p.c_out): latencies[p.anywhere()] for p in self.points(groups)}
        outputs = np.array(sorted({c_out for _, c_out in found}))
        if self.operator.depthwise:
            return Grid(np.array([0]), outputs, np.array([[found[c, c] for c in outputs.tolist()]]))
        inputs = np.array(sorted({c_in for c_in, _ in found}))
        rows = [[found[a, b] for b in outputs.tolist()] for a in inputs.tolist()]
        return Grid(inputs, outputs, np.array(rows))


def rows(module: nn.Module, model: Model, groups: Sequence[ChannelGroup], batch_size: int) -> list[Row]:
    """The operators of ``module``, which is the model at its full widths, in the order they are called."""
    axes = axis_widths(module, groups)
    return [
        Row(
            operator,
            None if operator.depthwise else axes.get((operator.layer, "in")),
            axes.get((operator.layer, "out")),
        )
        for operator in operators(module, model, batch_size)
    ]


def thinned(grid: Sequence[int], most: int = LEVELS) -> tuple[int, ...]:
    """At most that many widths of a grid, evenly spread, with its smallest and its largest."""
    if len(grid) <= most:
        return tuple(grid)
    return tuple(grid[round(i * (len(grid) - 1) / (most - 1))] for i in range(most))


def _levels(full: int, axis: AxisWidth | None, groups: Mapping[str, ChannelGroup]) -> list[int]:
    if axis is None:
        return [full]
    part = full / axis.full
    if len(axis.per_channel) == 1:
        id, share = next(iter(axis.per_channel.items()))
        group = groups[id]
        return sorted({round(part * (axis.full - share * (group.width - w))) for w in group.grid})
    on_axis = [(groups[id], share) for id, share in axis.per_channel.items()]
    smallest = axis.full - sum(share * (group.width - group.grid[0]) for group, share in on_axis)
    steps = [b - a for group, _ in on_axis for a, b in itertools.pairwise(group.grid)]
    between = np.arange(smallest, axis.full, min(steps, default=1))
    return sorted({round(part * w) for w in (*thinned(between.tolist(), SUMMED_LEVELS - 1), axis.full)})
