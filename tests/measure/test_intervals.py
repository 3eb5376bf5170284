"""Percentiles and speed-ups from raw samples."""

from __future__ import annotations

import numpy as np
import pytest

from deploycompress.measure.intervals import latency, own_intervals, paired_speedup, ratio


@pytest.mark.parametrize(
    ("samples", "p90", "p99"), [(63, False, False), (64, True, False), (661, True, False), (662, True, True)]
)
def test_percentiles_only_where_the_samples_support_them(samples: int, p90: bool, p99: bool) -> None:
    found = latency([list(range(1, samples + 1))])
    assert (found.p90 is not None, found.p99 is not None) == (p90, p99)
    assert found.samples == samples


def test_milliseconds() -> None:
    found = latency([[1_000_000] * 500, [3_000_000] * 500])
    assert (found.p50, found.p90, found.p99) == (2.0, 3.0, 3.0)
    assert (found.mean, found.seconds) == (2.0, 2.0)


def test_drift_that_both_share_cancels() -> None:
    drift = np.linspace(1, 3, 20)
    baseline = [[int(1e6 * d)] * 5 for d in drift]
    candidate = [[int(5e5 * d)] * 5 for d in drift]
    found = paired_speedup(baseline, candidate)
    assert found.value == pytest.approx(2, rel=1e-4)
    assert (found.low, found.high) == (pytest.approx(2, rel=1e-3), pytest.approx(2, rel=1e-3))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        baseline = generator.lognormal(0.0, 0.05, (20, 8)) * 1e6
        candidate = generator.lognormal(np.log(0.8), 0.05, (20, 8)) * 1e6
        found = paired_speedup(baseline.astype(int).tolist(), candidate.astype(int).tolist())
        assert found.low <= found.value <= found.high
        held += found.low <= 1.25 <= found.high
    assert held >= 50


def test_the_same_samples_give_the_same_interval() -> None:
    generator = np.random.default_rng(1)
    one, two = (generator.integers(1000, 2000, (12, 4)).tolist() for _ in range(2))
    assert paired_speedup(one, two) == paired_speedup(one, two)


@pytest.mark.parametrize(
    ("samples", "times"), [(20, 20), (2000, 6)]
)  # the second are more than an interval is drawn from
def test_the_intervals_of_one_artefact_hold_what_it_takes(samples: int, times: int) -> None:
    generator, held = np.random.default_rng(0), dict.fromkeys(("p50", "p90", "p99", "mean"), 0)
    truth = {
        "p50": 1.0,
        "p90": np.exp(0.05 * 1.2816),
        "p99": np.exp(0.05 * 2.3263),
        "mean": np.exp(0.05**2 / 2),
    }
    for _ in range(times):
        blocks = (generator.lognormal(0.0, 0.05, (60, samples)) * 1e6).astype(int).tolist()
        found, of = own_intervals(blocks), latency(blocks)
        for name, wanted in truth.items():
            low, high = found[name]  # type: ignore[index]
            assert low <= getattr(of, name) <= high
            held[name] += low <= wanted * 1.0005 and wanted * 0.9995 <= high
    assert min(held.values()) >= 0.75 * times, held


def test_an_interval_is_of_what_there_are_samples_for() -> None:
    blocks = [[1_000_000 + n for n in range(10)] for _ in range(8)]
    assert set(own_intervals(blocks)) == {"p50", "p90", "mean"}
    low, high = own_intervals([[2_000_000] * 40, [1_000_000] * 40])["p50"]
    assert (low, high) == (1.0, 2.0), "two blocks: their range"


def test_a_ratio_of_tails_is_that_of_all_samples_also_where_few_are_drawn_from() -> None:
    generator = np.random.default_rng(0)
    blocks = (generator.lognormal(0.0, 0.1, (40, 2000)) * 1e6).astype(int).tolist()
    others = (generator.lognormal(np.log(2.0), 0.1, (40, 2000)) * 1e6).astype(int).tolist()
    found = ratio("p90", others, blocks)
    exact = np.percentile(np.concatenate(others), 90) / np.percentile(np.concatenate(blocks), 90)
    assert found is not None and found.value == pytest.approx(exact, rel=1e-4)
    assert found.low < 2.0 < found.high and 0.001 < found.high - found.low < 0.05


def test_few_blocks_give_their_range() -> None:
    found = paired_speedup([[200], [300], [400]], [[100], [100], [100]])
    assert (found.low, found.value, found.high) == (pytest.approx(2), pytest.approx(3), pytest.approx(4))
