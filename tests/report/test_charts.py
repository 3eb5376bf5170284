"""Geometry: nothing outside its frame, nothing drawn over a name, odd figures survived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import AccuracyGate, LatencyGate, PipelineConfig
from deploycompress.report.bars import waterfalls, width_bars
from deploycompress.report.build import build
from deploycompress.report.classes import class_changes
from deploycompress.report.document import Gate, Report, check
from deploycompress.report.labels import covers
from deploycompress.report.layers import BETWEEN, REFORMATS, layers
from deploycompress.report.scatter import Scatter, scatter
from deploycompress.report.strips import MOST_STRIPS, strips

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


# ---------------------------------------------------------------- metric against latency


def drawn(make_run: Make, **changes: Any) -> Scatter:
    chart = scatter(check(build(*make_run(**changes))), 1000, 430)
    assert chart is not None
    return chart


@pytest.mark.parametrize("accuracy", [0.9, 1.0])
def test_competitors_stand_in_the_plot_and_are_never_the_best(make_run: Make, accuracy: float) -> None:
    report = build(*make_run(competitor=accuracy))
    rows = {row["artifact"]: row["latency_ms"]["p50"] for row in report["measurements"] if row["at_target"]}
    assert min(rows, key=lambda id: rows[id]) == "mobile", "it is the fastest of all"
    assert report["best"]["artifact"] == "quantize" and report["competitors"] == ["mobile"]
    assert "mobile" not in {shipped["artifact"] for shipped in report["ships"]}
    assert report["verdict"] == "pass", "no gate looks at it, also where it loses nine points"
    chart = scatter(check(report), 1000, 430)
    assert chart is not None
    kinds = {point.label: point.kind for point in chart.points}
    assert kinds == {"baseline": "baseline", "quantize": "best", "export": "other", "mobile": "competitor"}


def test_a_dot_s_area_is_the_artefact_s_size(make_run: Make) -> None:
    radii = {point.label: point.radius for point in drawn(make_run).points}
    assert (radii["export"] / radii["baseline"]) ** 2 == pytest.approx(257_300 / 1_231_400)
    assert radii["quantize"] == 4.5, "the smallest that can be seen"


def test_the_front_joins_what_nothing_is_both_faster_and_better_than(make_run: Make) -> None:
    chart = drawn(make_run, competitor=0.9)
    spots = {point.label: f"{point.x:.1f},{point.y:.1f}" for point in chart.points}
    corners = chart.front.split()
    # mobile is the fastest, quantize better, export (slower) better still, and the baseline the best of all.
    assert [corners.index(spots[name]) for name in ("mobile", "quantize", "export", "baseline")] == [
        0,
        2,
        4,
        6,
    ]
    beaten = scatter(report_of([("good", 1.0, 0.9), ("beaten", 2.0, 0.8), ("slow", 3.0, 0.95)]), 1000, 430)
    assert beaten is not None
    spot = next(f"{point.x:.1f},{point.y:.1f}" for point in beaten.points if point.label == "beaten")
    assert spot not in beaten.front.split()


def test_intervals_are_those_of_the_samples(make_run: Make) -> None:
    config, run_dir = make_run()
    report = check(build(config, run_dir))
    chart = scatter(report, 1000, 430)
    assert chart is not None
    best, base = (next(p for p in chart.points if p.kind == kind) for kind in ("best", "baseline"))
    assert best.y_high < best.y < best.y_low and base.y_high < base.y < base.y_low
    assert best.x_low < best.x < best.x_high and base.x_low == base.x == base.x_high
    found = report.intervals["quantize"]
    assert found.low < 1 - 9 / 600 < found.high and found.samples == 600


def test_limits_of_gates_are_lines_where_the_best_has_to_be(make_run: Make) -> None:
    drop = AccuracyGate(max_drop=Quantity.parse("1 pp", "points", "number"), on_inconclusive="warn")
    chart = drawn(make_run, gates={"accuracy": drop, "latency_p50": LatencyGate(min_speedup=3.0)})
    best, base = (next(p for p in chart.points if p.kind == kind) for kind in ("best", "baseline"))
    metric, speed = chart.limits
    assert (metric.text, speed.text) == ("accuracy: drop ≤ 1 pp", "p50: speed-up ≥ 3×")
    out_of_sight = drawn(make_run)  # two points below the baseline, where no artefact is
    assert [limit.text for limit in out_of_sight.limits] == ["p50: speed-up ≥ 3×"]
    assert base.y < best.y < metric.line[1] == metric.line[3]
    assert best.x < speed.line[0] == speed.line[2] < base.x


def test_the_texts_of_limits_that_are_near_stand_above_one_another() -> None:
    made = report_of([("a", 1.0, 0.9), ("b", 0.5, 0.9)])
    gates = [
        Gate(metric="latency_p50", bound="max", limit=limit, value=0.5, unit="ms", verdict="pass")
        for limit in (0.50, 0.51, 0.52)
    ]
    chart = scatter(made.model_copy(update={"gates": gates}), 1000, 330)
    assert chart is not None and len(chart.limits) == 3
    for number, one in enumerate(chart.limits):
        assert not any(covers(one.box, other.box) for other in chart.limits[:number])
        assert chart.top < one.y < chart.bottom


# ---------------------------------------------------------------- distributions


def test_a_strip_reaches_from_the_fastest_to_the_slowest_calls(make_run: Make) -> None:
    report = check(build(*make_run(competitor=0.9)))
    for width in (1000, 360):
        chart = strips(report, width)
        assert chart is not None
        assert [s.label for s in chart.strips] == ["baseline", "mobile", "quantize", "export"]
        for strip in chart.strips:
            points = [tuple(map(float, p.split(","))) for p in strip.outline.split()]
            assert min(x for x, _ in points) == pytest.approx(strip.x_low, abs=0.1)
            assert max(x for x, _ in points) == pytest.approx(strip.x_high, abs=0.1)
            # Most calls are quick: it is thickest near the left end.
            thickest = min(points, key=lambda p: p[1])
            assert thickest[0] < (strip.x_low + strip.x_high) / 2
            assert all(chart.left <= x <= chart.right and 0 <= y <= chart.bottom for x, y in points)
        assert [mark.name for mark in chart.strips[0].marks] == ["p50", "p90"], "p99 is not resolved"
        assert len(chart.ticks) >= 2


def test_many_artefacts_leave_some_out_and_none_leaves_the_section_out(make_run: Make) -> None:
    document = build(*make_run())
    row = next(r for r in document["measurements"] if r["at_target"])
    rows = [row | {"artifact": f"a{i}"} for i in range(MOST_STRIPS + 3)]
    chart = strips(check(document | {"measurements": rows}), 1000)
    assert chart is not None and (len(chart.strips), chart.left_out) == (MOST_STRIPS, 3)
    assert strips(check(document | {"measurements": [row | {"distribution": None}]}), 1000) is None


# ---------------------------------------------------------------- layers and classes


def test_layers_are_matched_by_name_and_what_is_none_comes_last(make_run: Make) -> None:
    found = layers(check(build(*make_run())))
    assert found is not None
    shown = {bar.label: bar for bar in found.bars}
    assert list(shown) == ["stem", "layer1.conv1", "head", REFORMATS, BETWEEN]
    assert (shown["stem"].text, shown["stem"].tone) == ("0.40 → 0.080 ms", "better")
    assert (shown["head"].text, shown["head"].tone) == ("0.0040 → 0.0060 ms", "worse")
    assert shown["stem"].before == 100 and shown["stem"].after == pytest.approx(20)
    assert shown[REFORMATS].text == "new → 0.010 ms"


def test_many_layers_are_summed_up(make_run: Make) -> None:
    document = build(*make_run())
    operator = {"op": "Conv", "provider": "CPU", "precision": "fp32"}
    many = [operator | {"node": f"n{i}", "ms": 1.0 + i, "layer": f"layer{i}"} for i in range(40)]
    halved = [of | {"ms": of["ms"] / 2} for of in many]
    found = layers(check(document | {"placement": {"baseline": many, "quantize": halved}}))
    assert found is not None and len(found.bars) == 17
    assert [bar.label for bar in found.bars][:2] == ["layer24", "layer25"], "in the network's order"
    assert found.bars[-1].label == "24 shorter layers"
    assert found.bars[-1].text == f"{sum(range(1, 25))} → {sum(range(1, 25)) / 2:.0f} ms"


def test_one_side_without_a_profile_has_no_section(make_run: Make) -> None:
    document = build(*make_run())
    assert layers(check(document | {"placement": {"quantize": document["placement"]["quantize"]}})) is None


def test_classes_that_lost_most_come_first_with_bars_to_the_left(make_run: Make) -> None:
    document = build(*make_run())
    document["by_class"] = {
        "baseline": {"recall": {"cat": 0.9, "dog": 0.9, "fox": 0.9}},
        "quantize": {"recall": {"cat": 0.95, "dog": 0.9, "fox": 0.8}},
    }
    found = class_changes(check(document))
    assert found is not None
    assert [(bar.label, bar.change, bar.tone) for bar in found.bars] == [
        ("fox", "−10.00 pp", "worse"),
        ("dog", "±0.00 pp", "total"),
        ("cat", "+5.00 pp", "better"),
    ]
    fox, _, cat = found.bars
    assert fox.start + fox.length == pytest.approx(50) and cat.start == 50
    assert cat.length == pytest.approx(fox.length / 2)
    assert found.note == "A class has about 200 of the 600 samples, so one of them is 0.50 pp"
