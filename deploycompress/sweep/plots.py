"""The geometry of a sweep's plots: one objective over another, with intervals and the line of the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploycompress.report.axes import metric_axis, positive_axis
from deploycompress.report.figures import shortened
from deploycompress.report.labels import place_label
from deploycompress.report.scatter import PLAIN, Kind, Point, Scatter
from deploycompress.sweep.objectives import Objective

# For an axis: what a figure in its base unit is divided by, and what that is called.
SCALES = {
    "bytes": (1000.0, "KB"),
    "ms": (1.0, "ms"),
    "share": (0.01, "%"),
    "x": (1.0, "×"),
    "/s": (1.0, "/s"),
}
MOST_LABELS = 30

Record = Mapping[str, Any]


def axes(objectives: Sequence[Objective]) -> list[tuple[Objective, Objective]]:
    """What runs to the right and what stands upwards: the first objective to be maximised, over each of the others."""
    up = next((o for o in objectives if o.direction == "maximise"), objectives[0])
    return [(other, up) for other in objectives if other is not up]


def chart(report: Record, x: Objective, y: Objective, width: int, height: int) -> Scatter | None:
    """Every trial and competitor, ``y`` over ``x``; None with fewer than two of them."""
    rivals = {r["name"] for r in report["competitors"]}
    records = [r for r in (*report["competitors"], *report["trials"]) if r["state"] == "complete"]
    if len(records) < 2 or any(_value(r, x) <= 0 for r in records):
        return None
    records.sort(
        key=lambda r: (r["name"] != report["best"], r["name"] not in rivals, r["name"] not in report["front"])
    )
    left, top, right, bottom = 58.0, 14.0, width - 18.0, height - 46.0
    divisor, unit = SCALES.get(x.unit, (1.0, ""))
    across = [[end / divisor for end in _ends(r, x)] for r in records]
    upwards = [_ends(r, y) for r in records]
    x_place, x_ticks = positive_axis([end for ends in across for end in ends], left, right)
    y_place, y_ticks = metric_axis([end for ends in upwards for end in ends], y.unit, bottom, top)
    spots = [(x_place(_value(r, x) / divisor), y_place(_value(r, y))) for r in records]
    taken = [(at_x - 8, at_y - 8, at_x + 8, at_y + 8) for at_x, at_y in spots]
    points: list[Point] = []
    for record, (at_x, at_y), to_right, up in zip(records, spots, across, upwards, strict=True):
        kind = _kind(record["name"], rivals, report)
        label = shortened(record["name"].removeprefix("trial "), 24) if kind != "other" else ""
        label = label if len(points) < MOST_LABELS else ""
        label_x, label_y, anchor = (
            place_label(at_x, at_y, PLAIN, label, (left, top, right, bottom), taken, [])
            if label
            else (at_x, at_y, "start")
        )
        ends = (x_place(to_right[0]), x_place(to_right[1]), y_place(up[0]), y_place(up[1]))
        points.append(Point(at_x, at_y, PLAIN, label, label_x, label_y, anchor, kind, *ends))
    title = f"{x.name} ({unit})" if unit else x.name
    ahead = sorted(s for r, s in zip(records, spots, strict=True) if r["name"] in report["front"])
    joined = " ".join(f"{at_x:.1f},{at_y:.1f}" for at_x, at_y in ahead)
    return Scatter(
        *(width, height, left, top, right, bottom),
        tuple(x_ticks),
        tuple(y_ticks),
        tuple(points),
        front=joined if len(report["objectives"]) == 2 else "",  # more of them make it no line
        limits=(),
        kinds=frozenset(point.kind for point in points),
        x_title=title,
        y_title=y.name,
    )


def _kind(name: str, rivals: set[str], report: Record) -> Kind:
    """As in the plot of a single run: what could ship instead, what counts, and the rest."""
    if name in rivals:
        return "competitor"
    return "best" if name in report["front"] or name == report["best"] else "other"


def _value(record: Record, objective: Objective) -> float:
    return float(record["objectives"][objective.name]["value"])


def _ends(record: Record, objective: Objective) -> list[float]:
    told = record["objectives"][objective.name]
    return [float(told["low"]), float(told["high"])]
