"""Geometry: nothing outside its frame, nothing drawn over a name, odd figures survived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.schema import PipelineConfig
from deploycompress.report.bars import waterfalls, width_bars
from deploycompress.report.build import build
from deploycompress.report.document import Report, check
from deploycompress.report.scatter import scatter

Make = Callable[..., tuple[PipelineConfig, Path]]


def report_of(figures: list[tuple[str, float, float]]) -> Report:
    """A report with these artefacts: id, p50 in milliseconds, accuracy."""
    latency = {"p90": None, "p99": None, "mean": 1.0, "samples": 100, "seconds": 1.0}
    rows: list[dict[str, Any]] = [
        {"artifact": id, "runtime": "r", "device": "d", "threads": 1, "batch_size": 1}
        | {"latency_ms": latency | {"p50": p50}, "metrics": {"accuracy": accuracy}}
        for id, p50, accuracy in figures
    ]
    document = {"schema": 1, "name": "x", "verdict": "pass", "exit_code": 0, "stages": [], "artifacts": []}
    return check(document | {"gates": [], "best": None, "environment": {}, "measurements": rows})


@pytest.mark.parametrize("size", [(1000, 330), (360, 300)])
@pytest.mark.parametrize(
    "figures",
    [
        [("a", 0.9, 0.99), ("b", 0.2, 0.98)],
        [("a", 900.0, 0.99), ("b", 0.2, 0.1), ("c", 0.201, 0.1)],
        [("same", 1.0, 0.5), ("same too", 1.0, 0.5), ("and this", 1.0, 0.5)],
        [("all right", 1.0, 1.0), ("all wrong", 2.0, 0.0)],
        [("huge", 1e300, 1e300), ("tiny", 1e-300, -1e300)],
        [(f"artefact-{i}", 1.0 + 0.01 * i, 0.9) for i in range(8)],
    ],
)
def test_points_and_labels_stay_in_the_frame(figures: list[tuple[str, float, float]], size: Any) -> None:
    chart = scatter(report_of(figures), *size)
    assert chart is not None
    for point in chart.points:
        assert chart.left <= point.x <= chart.right and chart.top <= point.y <= chart.bottom
    for tick in (*chart.x_ticks, *chart.y_ticks):
        assert 0 <= tick.at <= chart.width
    assert len(chart.x_ticks) >= 1


def test_a_slower_artefact_is_to_the_right_and_a_better_one_above() -> None:
    chart = scatter(report_of([("slow", 0.9, 0.99), ("fast", 0.2, 0.98)]), 1000, 330)
    assert chart is not None
    fast, slow = chart.points
    assert slow.x > fast.x and slow.y < fast.y
    assert [t.text for t in chart.x_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_labels_of_neighbours_do_not_overlap() -> None:
    chart = scatter(report_of([(f"artefact-{i}", 1.0 + 0.002 * i, 0.9) for i in range(5)]), 1000, 330)
    assert chart is not None
    places = [(p.label_y, p.label_x if p.anchor == "start" else p.label_x - 75) for p in chart.points]
    for i, (y, x) in enumerate(places):
        assert all(abs(y - other_y) >= 14 or abs(x - other_x) >= 60 for other_y, other_x in places[:i])


def test_one_point_is_no_plot() -> None:
    assert scatter(report_of([("a", 1.0, 0.9)]), 1000, 330) is None


def test_waterfalls_step_from_the_first_total_to_the_last(make_run: Make) -> None:
    falls = waterfalls(check(build(*make_run())))
    assert [(f.title, f.note) for f in falls] == [
        ("Latency", "p50"),
        ("Size", ""),
        ("Accuracy", "test split"),
        ("Accuracy", "validation split"),
    ]
    latency = falls[0].bars
    assert [(b.label, b.tone) for b in latency] == [
        ("baseline", "total"),
        ("prune, distill, export", "better"),
        ("quantize", "better"),
        ("result", "total"),
    ]
    assert latency[0].length == pytest.approx(100)
    assert latency[1].start + latency[1].length == pytest.approx(100)
    assert latency[2].start + latency[2].length == pytest.approx(latency[1].start)
    assert latency[3].length == pytest.approx(100 * 0.1916 / 0.862)
    assert [b.tone for b in falls[3].bars] == ["total", "worse", "better", "total"]
    for fall in falls:
        assert all(0 <= b.start <= 100 and b.start + b.length <= 100.01 for b in fall.bars)


def test_noise_does_not_fill_the_accuracy_axis(make_run: Make) -> None:
    test_split = waterfalls(check(build(*make_run())))[2]
    assert all(bar.length < 10 for bar in test_split.bars)


def test_widths_are_drawn_against_the_widest_layer(make_run: Make) -> None:
    bars = {bar.layer: bar for bar in width_bars(check(build(*make_run())))}
    assert (bars["layer3.0.conv1"].before, bars["layer3.0.conv1"].after) == (100, 37.5)
    assert (bars["head"].text, bars["stem.conv"].text) == ("10", "32 → 16")
