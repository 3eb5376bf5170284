"""A model's latency costs, from nothing: alignment, table, whole-model probes and fit, each made once and kept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from deploycompress.artifact import read_json, write_json
from deploycompress.contracts import Model, Store
from deploycompress.pruning.groups import ChannelGroup, on_grid
from deploycompress.pruning.latency.alignment import measured_alignment
from deploycompress.pruning.latency.prediction import LatencyCosts, Probe
from deploycompress.pruning.latency.rows import rows, thinned
from deploycompress.pruning.latency.table import Place, Progress, measured_table
from deploycompress.pruning.latency.whole import WholeModels

PROBED_SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.125)  # of the widths, around which each probe is drawn
SCATTER = 0.2
BLOCKS, BLOCK_MS = 6, 60.0


def aligned(
    module: nn.Module,
    model: Model,
    groups: Sequence[ChannelGroup],
    place: Place,
    store: Store,
    align: int | None,
    progress: Progress,
) -> tuple[tuple[ChannelGroup, ...], int]:
    """The groups of the unpruned ``module`` with the few widths that are tabulated; and their alignment.

    ``align``: None to measure which one pays.
    """
    if align is None:
        operators = [row.operator for row in rows(module, model, groups, place.target.batch_size)]
        align = measured_alignment(operators, place, store, progress)
    return tuple(replace(g, grid=thinned(g.grid)) for g in on_grid(groups, align)), align


def fitted_costs(
    module: nn.Module,
    model: Model,
    groups: Sequence[ChannelGroup],
    place: Place,
    store: Store,
    workdir: Path,
    progress: Progress,
    blocks: Mapping[str, frozenset[str]] | None = None,
) -> LatencyCosts:
    """Latency costs of the unpruned ``module`` over the grids of ``groups``.

    The table and the probes are kept in the store. Raises NotProfiled where the runtime gives no table.
    """
    by_id = {group.id: group for group in groups}
    found = rows(module, model, groups, place.target.batch_size)
    table = measured_table([p for row in found for p in row.points(by_id)], place, store, progress)
    costs = LatencyCosts(found, groups, table, blocks)
    costs.fit(_probes(module, model, groups, place, store, workdir, progress))
    return costs


def _probes(
    module: nn.Module,
    model: Model,
    groups: Sequence[ChannelGroup],
    place: Place,
    store: Store,
    workdir: Path,
    progress: Progress,
) -> list[Probe]:
    plans = _drawn(groups)
    key = {
        **place.key,
        "model": model.digest,
        "batch_size": place.target.batch_size,
        "plans": plans,
    }

    def make(folder: Path) -> None:
        whole = WholeModels(module, module, model, groups, place, workdir, progress)
        probes = whole.measure(plans, blocks=BLOCKS, block_ms=BLOCK_MS)
        full = {group.id: group.width for group in groups}
        measured = [*probes, Probe(full, whole.unpruned_ms)]
        write_json(
            folder / "probes.json",
            {"unit": "ms", "probes": [{"widths": p.widths, "latency": p.latency_ms} for p in measured]},
        )

    folder = store.folder("latency-probes", key, make)
    return [Probe(p["widths"], p["latency"]) for p in read_json(folder / "probes.json")["probes"]]


def _drawn(groups: Sequence[ChannelGroup]) -> list[dict[str, int]]:
    """Random widths of the grids, from nearly whole to nearly the smallest."""
    generator = random.Random(0)

    def near(group: ChannelGroup, share: float) -> int:
        wanted = min(1.0, max(0.0, generator.gauss(share, SCATTER))) * group.width
        return min(group.grid, key=lambda width: abs(width - wanted))

    drawn = [{group.id: near(group, share) for group in groups} for share in PROBED_SHARES]
    return [plan for i, plan in enumerate(drawn) if plan not in drawn[:i]]
