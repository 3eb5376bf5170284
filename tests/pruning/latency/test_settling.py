"""The truth loop, on latencies that are written down: which plan it takes, and what it measures for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploycompress.pruning.latency.prediction import Probe, Widths
from deploycompress.pruning.latency.settling import Settled, settle

UNPRUNED_MS = 1.0


class Written:
    """Latency by the width of the one group, in place of models that are measured."""

    unpruned_ms = UNPRUNED_MS

    def __init__(self, latency_ms: dict[int, float]) -> None:
        self.latency_ms = latency_ms
        self.measured: list[int] = []

    def measure(self, plans: Sequence[Widths], *, blocks: int, block_ms: float) -> list[Probe]:
        self.measured += [plan["conv"] for plan in plans]
        return [Probe(plan, self.latency_ms[plan["conv"]]) for plan in plans]


def settled(latency_ms: dict[int, float], predicted: float, limit: float) -> tuple[Settled, Written]:
    """``predicted``: what is predicted of a latency, as a share of it."""
    whole: Any = Written(latency_ms)

    def allocate(limit_ms: float) -> Widths | None:
        fitting = [width for width, ms in latency_ms.items() if ms * predicted <= limit_ms]
        return {"conv": max(fitting)} if fitting else None

    found = settle(
        whole,
        allocate,
        predict=lambda widths: latency_ms[widths["conv"]] * predicted,
        loss=lambda widths: 100.0 - widths["conv"],
        smallest={"conv": min(latency_ms)},
        limit_ms=lambda: limit,
    )
    return found, whole


def test_a_plan_in_the_last_per_cent_of_the_target_is_found() -> None:
    # 32 is within 97 % of the target, which ends the search; 40 loses less and is within it too.
    found, _ = settled({8: 0.2, 16: 0.4, 32: 0.49, 40: 0.498, 44: 0.51, 64: 1.0}, predicted=1.0, limit=0.5)
    assert found.reached
    assert found.chosen.widths == {"conv": 40}


def test_what_is_predicted_wrong_is_corrected_by_what_was_measured() -> None:
    for predicted in (0.6, 1.0, 1.5):
        found, _ = settled({w: w / 64 for w in range(1, 65)}, predicted, limit=0.5)
        assert found.chosen.widths == {"conv": 32}, predicted


def test_where_nothing_fits_the_smallest_was_measured_and_is_told_as_not_reached() -> None:
    found, whole = settled({8: 0.6, 16: 0.7, 64: 1.0}, predicted=1.0, limit=0.5)
    assert not found.reached
    assert found.chosen.widths == {"conv": 8}
    assert 64 not in whole.measured
