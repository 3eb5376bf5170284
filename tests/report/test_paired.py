"""The paired difference: what the interval holds, and what too few samples cannot tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploycompress.report.paired import Z95, difference, interval, samples_needed, tango_interval


def scores(samples: int, wrong: range) -> list[float]:
    return [0.0 if i in wrong else 1.0 for i in range(samples)]


def test_no_discordant_pair_still_leaves_doubt() -> None:
    low, high = tango_interval(0, 0, 600)
    limit = Z95**2 / (600 + Z95**2)  # Tango's interval in closed form for this case
    assert (low, high) == pytest.approx((-limit, limit), abs=1e-9)


@given(st.integers(0, 40), st.integers(0, 40))
def test_excludes_zero_exactly_when_mcnemar_does(gained: int, lost: int) -> None:
    low, high = tango_interval(gained, lost, 100)
    statistic = 0.0 if gained == lost else abs(gained - lost) / math.sqrt(gained + lost)
    assert (low > 0 or high < 0) == (statistic > Z95)
    assert low <= (gained - lost) / 100 <= high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(7).multinomial(600, [0.02, 0.03, 0.95], size=1000)
    covered = [low <= -0.01 <= high for low, high in (tango_interval(g, lo, 600) for g, lo, _ in drawn)]
    assert 0.93 <= np.mean(covered) <= 0.975


def test_mirrored_when_the_two_change_places() -> None:
    one = difference(scores(200, range(0, 8)), scores(200, range(5, 20)))
    other = difference(scores(200, range(5, 20)), scores(200, range(0, 8)))
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.value == pytest.approx(-7 / 200)


def test_graded_scores_are_bootstrapped_with_a_fixed_seed() -> None:
    generator = np.random.default_rng(1)
    baseline = generator.normal(size=400)
    candidate = baseline - 0.1 + 0.2 * generator.normal(size=400)
    found = difference(baseline.tolist(), candidate.tolist())
    assert found == difference(baseline.tolist(), candidate.tolist())
    error = np.std(candidate - baseline, ddof=1) / 20
    assert found.low == pytest.approx(found.value - Z95 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + Z95 * error, abs=0.15 * error)


@pytest.mark.parametrize(
    ("baseline", "candidate", "message"),
    [
        ([1.0] * 600, [1.0] * 599, "600 scores of the baseline against 599: not the same samples"),
        ([], [], "there are no scores"),
    ],
)
def test_refuses_what_cannot_be_paired(baseline: list[float], candidate: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        difference(baseline, candidate)


def test_says_how_many_samples_would_do() -> None:
    baseline, candidate = scores(600, range(7)), scores(600, range(2, 11))
    needed = samples_needed(baseline, candidate, 0.01)
    assert needed is not None and needed > 600
    for samples, resolved in ((needed, True), (needed - 1, False)):
        low, _ = tango_interval(2 * samples / 600, 4 * samples / 600, samples)
        assert (low >= -0.01) is resolved, samples


def test_a_drop_on_the_limit_is_never_resolved() -> None:
    assert samples_needed(scores(100, range(0)), scores(100, range(1)), 0.01) is None


def test_graded_scores_need_fewer_samples_when_they_vary_less() -> None:
    baseline = [0.5] * 50
    calm, wild = ([0.495 + spread * (-1) ** i for i in range(50)] for spread in (0.05, 0.5))
    few, many = (samples_needed(baseline, c, 0.01) for c in (calm, wild))
    assert few == pytest.approx(392, rel=0.02)
    assert many == pytest.approx(39200, rel=0.02)


@pytest.mark.parametrize(("right", "samples"), [(0, 10), (10, 10), (594, 600), (1, 2)])
def test_the_interval_of_a_share_is_wilson_s(right: int, samples: int) -> None:
    from scipy.stats import binomtest

    found = interval([1.0] * right + [0.0] * (samples - right))
    known = binomtest(right, samples).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert found.samples == samples


def test_the_interval_of_other_scores_is_that_of_their_mean() -> None:
    found = interval([0.2, 0.4, 0.6, 0.8] * 100)
    assert (found.low + found.high) / 2 == pytest.approx(0.5)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.2239 / 20, rel=1e-3)
