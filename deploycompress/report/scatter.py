"""The geometry of the accuracy-against-latency plot; the page draws it as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from deploycompress.report.document import Report
from deploycompress.report.figures import shortened

MOST_LABELS = 30  # the best, the baseline, then the fastest; more would only hide one another
LOG_ABOVE = 25.0  # slowest over fastest from which on the latency axis is logarithmic
CHARACTER = 7.2  # width of a label's letter, about, in the SVG's units


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    label_x: float
    label_y: float
    anchor: Literal["start", "end"]
    kind: Literal["baseline", "best", "other"]
    x_low: float
    x_high: float
    y_low: float
    y_high: float


@dataclass(frozen=True)
class Scatter:
    """A plot of ``width`` by ``height`` with its frame at left, top, right, bottom."""

    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    x_title: str
    y_title: str


def scatter(report: Report, width: int, height: int) -> Scatter | None:
    """Primary metric over p50 latency at the target, with 95 % intervals; None with fewer than two points."""
    name = report.primary.name
    rows = [r for r in report.measurements if r.at_target and name in r.metrics and r.latency_ms.p50 > 0]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda r: (r.artifact not in (report.best_id, report.baseline), r.latency_ms.p50))
    base = report.row(report.baseline)
    spans = []
    for row in rows:
        x, y = row.latency_ms.p50, row.metrics[name]
        x_span, y_span = (x, x), (y, y)
        speedup, paired = row.gain, report.differences.get(row.artifact)
        if base is not None and speedup is not None and speedup.low > 0 and speedup.high > 0:
            x_span = (base.latency_ms.p50 / speedup.high, base.latency_ms.p50 / speedup.low)
        if paired is not None and row.artifact != report.baseline:
            y_span = (y - paired.value + paired.low, y - paired.value + paired.high)
        spans.append((x_span, y_span))

    left, top, right, bottom = 58.0, 14.0, width - 18.0, height - 46.0
    x_place, x_ticks = positive_axis([x for s, _ in spans for x in s], left, right)
    values = [y for _, s in spans for y in s] + [r.metrics[name] for r in rows]
    y_place, y_ticks = metric_axis(values, report.primary.unit, bottom, top)
    spots = [(x_place(r.latency_ms.p50), y_place(r.metrics[name])) for r in rows]
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in spots]
    lines = [(x_place(s[0]), y, x_place(s[1]), y) for (s, _), (_, y) in zip(spans, spots, strict=True)]
    lines += [(x, y_place(s[1]), x, y_place(s[0])) for (_, s), (x, _) in zip(spans, spots, strict=True)]
    points: list[Point] = []
    for row, (x, y), (x_span, y_span) in zip(rows, spots, spans, strict=True):
        label = shortened(row.artifact, 24) if len(points) < MOST_LABELS else ""
        frame = (left, top, right, bottom)
        label_x, label_y, anchor = place_label(x, y, label, frame, taken, lines) if label else (x, y, "start")
        is_best = row.artifact == report.best_id
        points.append(
            Point(
                *(x, y, label, label_x, label_y, anchor),
                kind="best" if is_best else "baseline" if row.artifact == report.baseline else "other",
                x_low=x_place(x_span[0]),
                x_high=x_place(x_span[1]),
                y_low=y_place(y_span[0]),
                y_high=y_place(y_span[1]),
            )
        )
    titles = ("p50 latency (ms)", shortened(name, 24))
    return Scatter(
        width, height, left, top, right, bottom, tuple(x_ticks), tuple(y_ticks), tuple(points), *titles
    )


Place = Callable[[float], float]


def positive_axis(values: Sequence[float], start: float, end: float) -> tuple[Place, list[Tick]]:
    """From zero, or logarithmic where the fastest would vanish beside the slowest."""
    low, high = min(values), max(values)
    if high / low < LOG_ABOVE:
        steps = _steps(0.0, high * 1.12)
        top = high * 1.12

        def linear(value: float) -> float:
            return start + (end - start) * value / top

        return linear, [Tick(linear(s), f"{s:g}") for s in steps]
    first, last = math.log10(low) - 0.15, math.log10(high) + 0.15

    def logarithmic(value: float) -> float:
        return start + (end - start) * (math.log10(max(value, low)) - first) / (last - first)

    exponents = range(math.ceil(first), math.floor(last) + 1)
    return logarithmic, [Tick(logarithmic(10.0**e), f"{10.0**e:g}") for e in exponents]


def metric_axis(values: Sequence[float], unit: str, start: float, end: float) -> tuple[Place, list[Tick]]:
    """Only as far as the figures go, with some air; never beyond 100 % by more than the air."""
    scale = 100.0 if unit == "share" else 1.0
    low, high = scale * min(values), scale * max(values)
    air = 0.12 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - air, high + air
    steps = [s for s in _steps(low, high, 6) if unit != "share" or 0 <= s <= 100]

    def place(value: float) -> float:
        return start + (end - start) * (scale * value - low) / (high - low)

    sign = " %" if unit == "share" else ""
    return place, [Tick(place(s / scale), f"{s:g}{sign}") for s in steps]


def _steps(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.9)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, first + 3 * about) if i * step <= high + 1e-9]


Box = tuple[float, float, float, float]  # left, top, right, bottom


def place_label(
    x: float, y: float, label: str, frame: Box, taken: list[Box], lines: Sequence[Box]
) -> tuple[float, float, Literal["start", "end"]]:
    """Where beside its point a label covers least: other labels and points first, then whiskers."""
    width = CHARACTER * len(label) + 2
    places: list[tuple[float, float, float, Literal["start", "end"], Box]] = []
    for order, (side, shift) in enumerate((s, d) for d in (4, -9, 18, -24, 33, -39) for s in (1, -1)):
        label_x, label_y = x + 12 * side, y + shift
        begin = label_x if side > 0 else label_x - width
        box = (begin, label_y - 12, begin + width, label_y + 4)
        outside = begin < frame[0] or begin + width > frame[2] or box[1] < frame[1] - 10 or box[3] > frame[3]
        cost = 100.0 * outside + 10 * sum(_cover(box, other) for other in taken)
        cost += sum(_cover(box, line) for line in lines) + 0.3 * order
        places.append((cost, label_x, label_y, "start" if side > 0 else "end", box))
    _, label_x, label_y, anchor, box = min(places)
    taken.append(box)
    return label_x, label_y, anchor


def _cover(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
