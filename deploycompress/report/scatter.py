"""The geometry of the accuracy-against-latency plot; the page draws it as inline SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deploycompress.report.axes import Place, Tick, metric_axis, positive_axis
from deploycompress.report.document import Report, Row
from deploycompress.report.figures import limit, shortened
from deploycompress.report.labels import CHARACTER, Anchor, Box, covers, place_label

MOST_LABELS = 30  # the best, the baseline, then the fastest; more would only hide one another
SMALLEST, LARGEST = 4.5, 17.0  # radius of a dot, whose area is the artefact's size
LINE = 15.0  # from one text to the next above it
PLAIN = 6.0  # where no size is known

Kind = Literal["baseline", "best", "competitor", "other"]


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    radius: float
    label: str
    label_x: float
    label_y: float
    anchor: Anchor
    kind: Kind
    x_low: float
    x_high: float
    y_low: float
    y_high: float


@dataclass(frozen=True)
class Limit:
    """A gate's limit as a line across the plot, with its text at ``x``, ``y``."""

    line: Box
    text: str
    x: float
    y: float

    @property
    def box(self) -> Box:
        """What the text covers."""
        return (self.x, self.y - 11, self.x + CHARACTER * len(self.text), self.y + 3)


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
    front: str  # the points of a line behind which nothing is both faster and better
    limits: tuple[Limit, ...]
    kinds: frozenset[Kind]
    x_title: str
    y_title: str


def scatter(report: Report, width: int, height: int) -> Scatter | None:
    """Primary metric over p50 latency at the target, with 95 % intervals; None with fewer than two points."""
    name = report.primary.name
    rows = [r for r in report.measurements if r.at_target and name in r.metrics and r.latency_ms.p50 > 0]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda r: (r.artifact not in (report.best_id, report.baseline), r.latency_ms.p50))
    spans = [(_latency_span(report, row), _metric_span(report, row)) for row in rows]
    left, top, right, bottom = 58.0, 14.0, width - 18.0, height - 46.0
    x_place, x_ticks = positive_axis([x for s, _ in spans for x in s], left, right)
    values = [y for _, s in spans for y in s] + [r.metrics[name] for r in rows]
    y_place, y_ticks = metric_axis(values, report.primary.unit, bottom, top)
    spots = [(x_place(r.latency_ms.p50), y_place(r.metrics[name])) for r in rows]
    radii = _radii(report, rows, width)
    taken = [(x - r - 2, y - r - 2, x + r + 2, y + r + 2) for (x, y), r in zip(spots, radii, strict=True)]
    lines = [(x_place(s[0]), y, x_place(s[1]), y) for (s, _), (_, y) in zip(spans, spots, strict=True)]
    lines += [(x, y_place(s[1]), x, y_place(s[0])) for (_, s), (x, _) in zip(spans, spots, strict=True)]
    frame = (left, top, right, bottom)
    limits = _limits(report, x_place, y_place, frame)
    taken += [limit.box for limit in limits]
    lines += [limit.line for limit in limits]
    points: list[Point] = []
    for row, (x, y), (x_span, y_span), radius in zip(rows, spots, spans, radii, strict=True):
        label = shortened(row.artifact, 24) if len(points) < MOST_LABELS else ""
        spot = place_label(x, y, radius, label, frame, taken, lines) if label else (x, y, "start")
        ends = (x_place(x_span[0]), x_place(x_span[1]), y_place(y_span[0]), y_place(y_span[1]))
        points.append(Point(x, y, radius, label, *spot, report.standing(row.artifact), *ends))
    return Scatter(
        *(width, height, *frame),
        tuple(x_ticks),
        tuple(y_ticks),
        tuple(points),
        front=_front(points, report.primary.higher_is_better),
        limits=limits,
        kinds=frozenset(point.kind for point in points),
        x_title="p50 latency (ms)",
        y_title=shortened(name, 24),
    )


def _latency_span(report: Report, row: Row) -> tuple[float, float]:
    """Where the speed-up over the baseline puts its p50; nothing for the baseline itself."""
    base, gain = report.row(report.baseline), row.gain
    if base is None or gain is None or gain.low <= 0 or gain.high <= 0 or base.latency_ms.p50 <= 0:
        return row.latency_ms.p50, row.latency_ms.p50
    return base.latency_ms.p50 / gain.high, base.latency_ms.p50 / gain.low


def _metric_span(report: Report, row: Row) -> tuple[float, float]:
    """That of the samples; of a report that has none, the one of the difference from the baseline."""
    value, found = row.metrics[report.primary.name], report.intervals.get(row.artifact)
    if found is not None:
        return found.low, found.high
    paired = report.differences.get(row.artifact)
    if paired is None or row.artifact == report.baseline:
        return value, value
    return value - paired.value + paired.low, value - paired.value + paired.high


def _radii(report: Report, rows: Sequence[Row], width: int) -> list[float]:
    """Areas that are to each other as the sizes are, as far as the smallest dot can still be seen."""
    found = [report.artefact(row.artifact) for row in rows]
    if any(artefact is None or not artefact.bytes for artefact in found):
        return [PLAIN] * len(rows)
    sizes = [artefact.bytes for artefact in found if artefact is not None]
    largest = LARGEST if width > 500 else 0.75 * LARGEST
    return [max(SMALLEST, largest * math.sqrt(size / max(sizes))) for size in sizes]


def _front(points: Sequence[Point], higher_is_better: bool) -> str:
    """Steps along the points that no other is faster and better than."""
    down = 1 if higher_is_better else -1  # y grows downwards
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, down * p.y)):
        if not kept or down * point.y < down * kept[-1].y:
            kept.append(point)
    corners = [(kept[0].x, kept[0].y)]
    for before, after in itertools.pairwise(kept):
        corners += [(after.x, before.y), (after.x, after.y)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners) if len(kept) > 1 else ""


def _limits(report: Report, x_place: Place, y_place: Place, frame: Box) -> tuple[Limit, ...]:
    """What the gates on p50 and on the primary metric ask for, where it lies within the plot."""
    left, top, right, bottom = frame
    base = report.row(report.baseline)
    metric = None if base is None else base.metrics.get(report.primary.name)
    found: list[Limit] = []
    for gate in report.gates:
        if gate.limit is None:
            continue
        text = shortened(limit(gate.bound, gate.limit, gate.unit), 32)
        if gate.metric == "latency_p50" and gate.limit > 0:
            of_base = None if base is None else base.latency_ms.p50 / gate.limit
            at_ms = gate.limit if gate.bound == "max" else of_base
            if at_ms is not None and left < x_place(at_ms) < right:
                x = x_place(at_ms)
                found.append(_above(found, Limit((x, top, x, bottom), f"p50: {text}", x + 6, bottom - 8)))
        elif gate.metric in ("accuracy", f"metric:{report.primary.name}"):
            signs = {"max_drop": -1.0, "max_rise": 1.0}
            moved = None if metric is None else metric + signs.get(gate.bound, 0.0) * gate.limit
            at = moved if gate.bound in signs else gate.limit
            if at is not None and top < y_place(at) < bottom:
                y = y_place(at)
                shown = f"{shortened(report.primary.name, 20)}: {text}"
                found.append(_above(found, Limit((left, y, right, y), shown, left + 6, y - 6)))
    return tuple(found)


def _above(placed: Sequence[Limit], limit: Limit) -> Limit:
    """Its text so much higher that it covers none of those that are placed."""
    while any(covers(limit.box, other.box) for other in placed):
        limit = replace(limit, y=limit.y - LINE)
    return limit
