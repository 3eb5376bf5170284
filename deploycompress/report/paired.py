"""What scores of samples support: the interval of an artefact's mean, and of the difference of two on the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054  # two-sided 95 %
RESAMPLES = 2000
SEED = 0
MOST_SAMPLES = 10**9  # beyond this many, "more" is no advice


@dataclass(frozen=True)
class Difference:
    """Mean of candidate minus baseline over ``samples`` paired scores, with its 95 % interval."""

    value: float
    low: float
    high: float
    samples: int


def difference(baseline: Sequence[float], candidate: Sequence[float]) -> Difference:
    """The paired difference of two equally long, non-empty lists of scores.

    Scores that are all 0 or 1 (right or wrong) get Tango's score interval, others a seeded paired
    bootstrap. Raises ValueError when the lists cannot belong to the same samples.
    """
    if len(baseline) != len(candidate):
        raise ValueError(
            f"{len(baseline)} scores of the baseline against {len(candidate)}: not the same samples"
        )
    if not baseline:
        raise ValueError("there are no scores")
    samples = len(baseline)
    if all(score in (0, 1) for score in (*baseline, *candidate)):
        gained, lost = _discordant(baseline, candidate)
        low, high = tango_interval(gained, lost, samples)
        return Difference((gained - lost) / samples, low, high, samples)
    return _bootstrap(baseline, candidate)


@dataclass(frozen=True)
class Interval:
    """Where the mean of scores lies, with 95 %, given that other samples could have been drawn."""

    low: float
    high: float
    samples: int


def interval(scores: Sequence[float]) -> Interval:
    """The sampling interval of a mean: Wilson's for scores that are all 0 or 1, the normal one for others.

    Wilson's (1927) is not empty where all are right, and never leaves 0..1.
    """
    samples = len(scores)
    mean = sum(scores) / samples
    if all(score in (0, 1) for score in scores):
        share = Z95**2 / samples
        middle = (mean + share / 2) / (1 + share)
        half = Z95 * math.sqrt(mean * (1 - mean) / samples + share / (4 * samples)) / (1 + share)
        return Interval(max(0.0, middle - half), min(1.0, middle + half), samples)
    variance = sum((score - mean) ** 2 for score in scores) / max(1, samples - 1)
    half = Z95 * math.sqrt(variance / samples)
    return Interval(mean - half, mean + half, samples)


def samples_needed(baseline: Sequence[float], candidate: Sequence[float], allowance: float) -> int | None:
    """How many samples would tell on which side of ``-allowance`` the difference lies, if they behave
    like these; None when the difference sits on the allowance itself, so that no number would do.
    """
    found = difference(baseline, candidate)
    distance = abs(found.value + allowance)
    if distance < 1e-12:
        return None
    binary = all(score in (0, 1) for score in (*baseline, *candidate))
    if not binary:
        deviations = [(c - b - found.value) ** 2 for b, c in zip(baseline, candidate, strict=True)]
        variance = sum(deviations) / max(1, found.samples - 1)
        return max(found.samples + 1, math.ceil(Z95**2 * variance / distance**2))
    gained, lost = (count / found.samples for count in _discordant(baseline, candidate))

    def resolved(samples: float) -> bool:
        low, high = tango_interval(gained * samples, lost * samples, samples)
        return low >= -allowance or high < -allowance

    return _smallest(resolved, found.samples)


def tango_interval(gained: float, lost: float, samples: float) -> tuple[float, float]:
    """95 % score interval of the difference of two paired proportions.

    ``gained`` and ``lost`` count the pairs that only the second, or only the first, got right. Unlike
    the normal interval it stays honest with few or no such pairs (Tango 1998, Statistics in Medicine
    17, 891-908).
    """
    estimate = (gained - lost) / samples

    def excess(candidate: float) -> float:
        return _score(candidate, gained, lost, samples)

    # The statistic falls as the candidate difference rises: +Z95 at the lower end, -Z95 at the upper.
    low = _crossing(lambda d: excess(d) - Z95, -1.0, estimate)
    high = _crossing(lambda d: excess(d) + Z95, estimate, 1.0)
    return low, high


def _discordant(baseline: Sequence[float], candidate: Sequence[float]) -> tuple[int, int]:
    pairs = list(zip(baseline, candidate, strict=True))
    return sum(c > b for b, c in pairs), sum(c < b for b, c in pairs)


def _score(delta: float, gained: float, lost: float, samples: float) -> float:
    """Tango's statistic for the hypothesis that the difference is ``delta`` (his equations 4 and 6)."""
    b = -gained - lost + (2 * samples - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    a = 2 * samples
    nuisance = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = samples * (2 * nuisance + delta * (1 - delta))
    distance = gained - lost - samples * delta
    if variance <= 0:
        return 0.0 if abs(distance) < 1e-12 * samples else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero, by bisection; the nearer end where it does not."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _smallest(holds: Callable[[float], bool], above: int) -> int | None:
    """The smallest count from ``above`` on for which ``holds`` is true, given that it stays true."""
    high = above + 1
    while not holds(high):
        high *= 2
        if high > MOST_SAMPLES:
            return None
    low = above
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _bootstrap(baseline: Sequence[float], candidate: Sequence[float]) -> Difference:
    """Percentile interval of the mean paired difference, from resampled samples."""
    import numpy as np

    differences = np.asarray(candidate, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    generator = np.random.default_rng(SEED)
    means = [
        differences[generator.integers(0, len(differences), len(differences))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high), len(differences))
