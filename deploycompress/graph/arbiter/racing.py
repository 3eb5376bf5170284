"""Measures artefacts beside the source: several briefly, then those that may be the fastest for longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.jobs import Candidate, Progress, failure_of, run_job, split
from deploycompress.devices.results import Failed, Timing
from deploycompress.measure.intervals import paired_speedup
from deploycompress.measure.measurement import Speedup
from deploycompress.measure.plan import Plan

FIRST = Plan(blocks=6, block_ms=110.0, warmup_ms=200.0, least_samples=12, enough_samples=200, again=0.0)
FINAL = Plan(blocks=20, block_ms=110.0, warmup_ms=200.0, least_samples=40, enough_samples=200)
FINALISTS = 4  # one job
# What is slower than the fastest by more than this in the brief measurement is not measured again.
BEHIND = 1.25


@dataclass(frozen=True)
class Raced:
    """Beside the source, which ran in the same blocks; ``speedup``: over the source."""

    p50_ms: float
    speedup: Speedup
    peak_memory: float | None = None  # of its process, as a share of the source's
    peak_memory_bytes: int | None = None


def race(
    device: Device,
    source: Candidate,
    candidates: Sequence[Candidate],
    feed: Mapping[str, np.ndarray],
    *,
    in_time: Callable[[], bool],
    progress: Progress = lambda done, message: None,
) -> dict[str, Raced | Failed]:
    """By candidate id; one that was not measured because ``in_time`` said no is left out.

    Raises EnvironmentMissing when the device fails, or the source itself is not measured there.
    """
    found: dict[str, Raced | Failed] = {}
    finalists = [c.id for c in candidates]
    if len(candidates) > 1:
        for group in split([source, *candidates], source.id, {source.runtime: source.id}):
            if not in_time():
                break
            found.update(_measured(device, source, group, feed, FIRST, progress))
        finalists = _finalists({id: of for id, of in found.items() if isinstance(of, Raced)})
    if finalists and in_time():
        group = [source, *(c for c in candidates if c.id in finalists)]
        found.update(_measured(device, source, group, feed, FINAL, progress))
    return found


def _finalists(raced: Mapping[str, Raced]) -> list[str]:
    """The fastest of them, and what is not far behind it."""
    best = max((of.speedup.value for of in raced.values()), default=0.0)
    order = sorted(raced, key=lambda id: -raced[id].speedup.value)
    return [id for id in order if best <= BEHIND * raced[id].speedup.value][:FINALISTS]


def _measured(
    device: Device,
    source: Candidate,
    group: Sequence[Candidate],
    feed: Mapping[str, np.ndarray],
    plan: Plan,
    progress: Progress,
) -> dict[str, Raced | Failed]:
    entries = run_job(device, group, feed=feed, plan=plan, progress=progress).candidates
    before = entries[source.id]
    if isinstance(before, Failed):
        raise failure_of(before, "the source was not measured")
    return {id: _raced(entry, before) for id, entry in entries.items() if id != source.id}


def _raced(entry: Timing | Failed, source: Timing) -> Raced | Failed:
    if isinstance(entry, Failed):
        return entry
    if not entry.finite:
        return Failed("run", "it gives NaN or infinite outputs")
    p50_ms = float(np.median(np.concatenate([np.asarray(b) for b in entry.blocks_ns]))) / 1e6
    own, whole = entry.peak_memory_bytes, source.peak_memory_bytes
    share = own / whole if own and whole else None
    return Raced(p50_ms, paired_speedup(source.blocks_ns, entry.blocks_ns), share, own)
