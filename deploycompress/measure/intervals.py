"""What raw samples support: percentiles, and the speed-up with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploycompress.measure.measurement import Latency, Speedup

# Fewest samples for a percentile: MLPerf inference, early stopping for single stream.
FEWEST_SAMPLES = {90: 64, 99: 662}
RESAMPLES = 10_000
FEWEST_BLOCKS = 6  # below it a bootstrap over blocks has too few values to draw from


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
    baseline_ns: Sequence[Sequence[int]], candidate_ns: Sequence[Sequence[int]], seed: int = 0
) -> Speedup:
    """Baseline over candidate: the median of the ratios of blocks that ran side by side.

    The interval (95 %) is a percentile bootstrap over the blocks; below ``FEWEST_BLOCKS`` of them it is
    the range of the ratios. Pairing takes out what drifts slowly: clocks, heat, a neighbour (Bulej et al.,
    "Duet Benchmarking", ICPE 2020).
    """
    ratios = np.array(
        [np.log(np.median(b) / np.median(c)) for b, c in zip(baseline_ns, candidate_ns, strict=True)]
    )
    value = float(np.median(ratios))
    if len(ratios) < FEWEST_BLOCKS:
        low, high = float(ratios.min()), float(ratios.max())
    else:
        draws = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
        low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Speedup(float(np.exp(value)), float(np.exp(low)), float(np.exp(high)))
