"""What raw samples support: percentiles, the speed-up with its interval, and what that says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from deploycompress.measure.measurement import Latency, Speedup

# Fewest samples for a percentile: MLPerf inference, early stopping for single stream.
FEWEST_SAMPLES = {90: 64, 99: 662}
RESAMPLES = 10_000
FEWEST_BLOCKS = 6  # below it a bootstrap over blocks has too few values to draw from
POOLED_RESAMPLES, MOST_POOLED = 500, 20_000  # each of them sorts at most so many samples
# Two processes of one artefact differ by 1 to 2 % through where their memory happens to lie.
LEAST_EFFECT = 0.03

Statistic = Literal["p50", "p90", "p99", "mean"]
Word = Literal["faster", "slower", "as fast", "cannot tell"]


def latency(blocks_ns: Sequence[Sequence[int]]) -> Latency:
    """Milliseconds of one inference from blocks of raw samples in nanoseconds."""
    samples = np.concatenate([np.asarray(block, dtype=np.int64) for block in blocks_ns])
    return Latency(
        p50=float(np.median(samples)) / 1e6,
        p90=percentile(samples, 90),
        p99=percentile(samples, 99),
        mean=float(samples.mean()) / 1e6,
        samples=len(samples),
        seconds=float(samples.sum()) / 1e9,
    )


def percentile(samples_ns: np.ndarray, rank: int) -> float | None:
    """The percentile in milliseconds; None where there are too few samples to say."""
    if len(samples_ns) < FEWEST_SAMPLES[rank]:
        return None
    return float(np.percentile(samples_ns, rank, method="higher")) / 1e6


def paired_speedup(
    baseline_ns: Sequence[Sequence[int]],
    candidate_ns: Sequence[Sequence[int]],
    seed: int = 0,
    of: Callable[[Sequence[int]], np.floating] = np.median,
) -> Speedup:
    """Baseline over candidate: the median of the ratios of blocks that ran side by side, each ``of`` its samples.

    The interval (95 %) is a percentile bootstrap over the blocks; below ``FEWEST_BLOCKS`` of them it is
    the range of the ratios. Pairing takes out what drifts slowly: clocks, heat, a neighbour (Bulej et al.,
    "Duet Benchmarking", ICPE 2020).
    """
    ratios = np.array([np.log(of(b) / of(c)) for b, c in zip(baseline_ns, candidate_ns, strict=True)])
    value = float(np.median(ratios))
    if len(ratios) < FEWEST_BLOCKS:
        low, high = float(ratios.min()), float(ratios.max())
    else:
        draws = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
        low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Speedup(float(np.exp(value)), float(np.exp(low)), float(np.exp(high)))


def ratio(
    statistic: Statistic,
    baseline_ns: Sequence[Sequence[int]],
    candidate_ns: Sequence[Sequence[int]],
    seed: int = 0,
) -> Speedup | None:
    """Baseline over candidate, of blocks that ran side by side; None where a percentile has too few samples.

    Those of p50 and mean are paired block by block. A block has too few samples for a tail: p90 and p99 are those of
    all samples together, with a bootstrap over the pairs of blocks (95 %).
    """
    if statistic == "p50":
        return paired_speedup(baseline_ns, candidate_ns, seed)
    if statistic == "mean":
        return paired_speedup(baseline_ns, candidate_ns, seed, np.mean)
    rank = int(statistic[1:])
    if any(sum(map(len, blocks)) < FEWEST_SAMPLES[rank] for blocks in (baseline_ns, candidate_ns)):
        return None
    sides = [_thinned(blocks) for blocks in (baseline_ns, candidate_ns)]

    def of(pooled: Sequence[np.ndarray]) -> float:
        before, after = (np.percentile(samples, rank, method="higher") for samples in pooled)
        return float(before / after)

    value = of([np.concatenate([*map(np.asarray, blocks)]) for blocks in (baseline_ns, candidate_ns)])
    drawn = [
        of([np.concatenate([side[i] for i in draw]) for side in sides])
        for draw in _draws(len(sides[0]), seed)
    ]
    low, high = _bounds(drawn, len(sides[0]))
    return Speedup(value, min(value, float(low)), max(value, float(high)))


def own_intervals(blocks_ns: Sequence[Sequence[int]], seed: int = 0) -> dict[Statistic, tuple[float, float]]:
    """Where each figure of ``latency`` lies, in milliseconds (95 %, a bootstrap over blocks); none without samples enough.

    It knows of the blocks of one process, and nothing of what the next process would give.
    """
    blocks, found = _thinned(blocks_ns), []
    for draw in _draws(len(blocks), seed):
        pooled = np.concatenate([blocks[i] for i in draw])
        found.append([*np.percentile(pooled, [50, 90, 99], method="higher"), pooled.mean()])
    low, high = _bounds(found, len(blocks))
    of = latency(blocks_ns)
    values: dict[Statistic, float | None] = {"p50": of.p50, "p90": of.p90, "p99": of.p99, "mean": of.mean}
    return {
        name: (min(value, float(low[i]) / 1e6), max(value, float(high[i]) / 1e6))
        for i, (name, value) in enumerate(values.items())
        if value is not None
    }


def _thinned(blocks_ns: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Evenly, where there are more samples than an interval needs: each draw sorts them all."""
    step = math.ceil(sum(map(len, blocks_ns)) / MOST_POOLED)
    return [np.asarray(block, dtype=np.int64)[:: max(1, step)] for block in blocks_ns]


def _draws(blocks: int, seed: int) -> Iterable[Sequence[int] | np.ndarray]:
    """Blocks with replacement; each by itself where they are too few for that."""
    if blocks < FEWEST_BLOCKS:
        return [[i] for i in range(blocks)]
    return np.random.default_rng(seed).integers(0, blocks, (POOLED_RESAMPLES, blocks))


def _bounds(drawn: Sequence[Any], blocks: int) -> np.ndarray:
    found: np.ndarray = np.percentile(drawn, [0, 100] if blocks < FEWEST_BLOCKS else [2.5, 97.5], axis=0)
    return found


def noise_floor(again: Speedup) -> float:
    """The share by which an artefact differs from itself, in two processes side by side."""
    return max(again.value, 1 / again.value) - 1


def least_effect(floor: float) -> float:
    """The share below which a difference is noise: twice the floor, as that is one pair of processes of many."""
    return max(2 * floor, LEAST_EFFECT)


def word(speedup: Speedup, floor: float) -> Word:
    """What a speed-up says beside a noise floor (a share).

    A difference is beyond ``least_effect``, and its interval leaves no doubt which way it goes; two are as fast
    where the whole interval lies within ``LEAST_EFFECT``. The interval is of the blocks of one pair of processes:
    what two processes of one artefact differ by is not in it, which is why it alone decides nothing.
    """
    margin = 1 + least_effect(floor)
    if speedup.value > margin and speedup.low > 1:
        return "faster"
    if speedup.value < 1 / margin and speedup.high < 1:
        return "slower"
    alike = speedup.low >= 1 / (1 + LEAST_EFFECT) and speedup.high <= 1 + LEAST_EFFECT
    return "as fast" if alike else "cannot tell"
