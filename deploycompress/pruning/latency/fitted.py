"""A model's latency costs, from nothing: alignment, table, whole-model probes and fit, each made once and kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from deploycompress.artifact import read_json, write_json
from deploycompress.contracts import Model, Note
from deploycompress.devices.profiles import NotProfiled
from deploycompress.graph.operators import Operator
from deploycompress.pruning.blocks import Block
from deploycompress.pruning.groups import ChannelGroup, on_grid
from deploycompress.pruning.latency.alignment import measured_alignment
from deploycompress.pruning.latency.bench import Bench
from deploycompress.pruning.latency.prediction import LatencyCosts, Probe
from deploycompress.pruning.latency.rows import Row, rows, thinned
from deploycompress.pruning.latency.table import Latencies, measured_table
from deploycompress.pruning.latency.whole import WholeModels

PROBED_SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.125)  # of the widths, around which each probe is drawn
SCATTER = 0.2
WITHOUT = 0.3  # of the blocks are out, in the probes that are without some
BLOCKS, BLOCK_MS = 12, 30.0  # many short ones: a burst of something else must not reach the median
MEASURED_AGAIN = 0.1  # of the latency that a probe is off from the fit to all of them
UNMEASURED_ALIGN = 16  # where operators cannot be timed: suits every kernel we know of


@dataclass(frozen=True)
class Fitted:
    """Latency costs over the grids of ``groups``, which are the unpruned model's."""

    costs: LatencyCosts
    groups: tuple[ChannelGroup, ...]
    align: int
    error: float  # of the prediction, on models it was not fitted to: the largest, as a share
    points: int  # of the table
    notes: tuple[Note, ...]

    @property
    def figures(self) -> dict[str, float]:
        return {"align": self.align, "points": self.points, "largest_error": self.error}


def fitted_costs(
    module: nn.Module,
    model: Model,
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    align: int | None,
    bench: Bench,
) -> Fitted:
    """Latency costs of the unpruned ``module``; ``align`` None measures which step between widths pays.

    Table and probes are kept in the store. Where the runtime does not time single operators, MACs stand in
    for them, and a note says so.
    """
    found = rows(module, model, groups, bench.place.target.batch_size)
    chosen = align or _alignment([row.operator for row in found], bench)
    gridded = tuple(replace(g, grid=thinned(g.grid)) for g in on_grid(groups, chosen))
    by_id = {group.id: group for group in gridded}
    points = sorted({p.anywhere() for row in found for p in row.points(by_id)}, key=repr)
    whole = WholeModels(module, module, model, gridded, blocks, bench.place, bench.workdir, bench.progress)
    notes: tuple[Note, ...] = ()
    try:
        table = measured_table(
            points, [row.operator for row in found], bench.place, bench.store, bench.progress
        )
    except NotProfiled as reason:
        whole.measure([], blocks=BLOCKS, block_ms=BLOCK_MS)
        table = _by_macs(points, found, whole.unpruned_ms)
        notes = (Note("fell_back", f"{reason}; multiply-accumulates stand in for the latency table"),)
    costs = LatencyCosts(found, gridded, table, {b.id: frozenset(b.layers) for b in blocks})
    error = costs.fit(_probes(model, _drawn(gridded, blocks), costs, whole, bench))
    return Fitted(costs, gridded, chosen, error, len(points), notes)


def _alignment(operators: Sequence[Operator], bench: Bench) -> int:
    try:
        return measured_alignment(operators, bench.place, bench.store, bench.progress)
    except NotProfiled:
        return UNMEASURED_ALIGN


def _by_macs(points: Sequence[Operator], found: Sequence[Row], unpruned_ms: float) -> Latencies:
    """Every operator's share of the unpruned model's latency is that of its MACs."""
    total = sum(row.operator.macs for row in found)
    return {point: unpruned_ms * point.macs / total for point in points}


def _probes(
    model: Model, plans: Sequence[dict[str, int]], costs: LatencyCosts, whole: WholeModels, bench: Bench
) -> list[Probe]:
    """The plans and the unpruned model, measured; those that the fit is far off from a second time."""
    key = {
        **bench.place.key,
        "model": model.digest,
        "batch_size": bench.place.target.batch_size,
        "full": dict(costs.full),
        "plans": plans,
    }

    def make(folder: Path) -> None:
        measured = dict(enumerate(whole.measure(plans, blocks=BLOCKS, block_ms=BLOCK_MS)))

        def probes() -> list[Probe]:
            found = [Probe(plans[i], ratio * whole.unpruned_ms) for i, ratio in measured.items()]
            return [*found, Probe(costs.full, whole.unpruned_ms)]

        costs.fit(probes())
        doubtful = [
            i for i, probe in enumerate(probes()[:-1]) if costs.relative_error(probe) > MEASURED_AGAIN
        ]
        if doubtful:
            again = whole.measure([plans[i] for i in doubtful], blocks=BLOCKS, block_ms=BLOCK_MS)
            measured.update(zip(doubtful, again, strict=True))
        document = [{"widths": p.widths, "latency": p.latency_ms} for p in probes()]
        write_json(folder / "probes.json", {"unit": "ms", "probes": document})

    folder = bench.store.folder("latency-probes", key, make)
    return [Probe(p["widths"], p["latency"]) for p in read_json(folder / "probes.json")["probes"]]


def _drawn(groups: Sequence[ChannelGroup], blocks: Sequence[Block]) -> list[dict[str, int]]:
    """Random widths of the grids, from nearly whole to nearly the smallest; every other one without some blocks."""
    generator = random.Random(0)

    def near(group: ChannelGroup, share: float) -> int:
        wanted = min(1.0, max(0.0, generator.gauss(share, SCATTER))) * group.width
        return min(group.grid, key=lambda width: abs(width - wanted))

    drawn = []
    for number, share in enumerate(PROBED_SHARES):
        plan = {group.id: near(group, share) for group in groups}
        for block in blocks:
            gone = number % 2 == 1 and generator.random() < WITHOUT
            plan |= {block.id: 0, **dict.fromkeys(block.groups, 0)} if gone else {block.id: 1}
        drawn.append(plan)
    return [plan for i, plan in enumerate(drawn) if plan not in drawn[:i]]
