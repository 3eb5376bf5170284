"""The geometry of the latency distributions: a strip for each artefact, on one logarithmic axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploycompress.report.axes import Tick, log_axis
from deploycompress.report.document import Distribution, Report, Row
from deploycompress.report.figures import figure, shortened

MOST_STRIPS = 12
BIN = 3.0  # width of what is counted together, in the SVG's units
HALF = 15.0  # a strip's height, from its middle


@dataclass(frozen=True)
class Mark:
    """A percentile that the samples support."""

    at: float
    name: str


@dataclass(frozen=True)
class Strip:
    label: str
    text: str
    kind: str  # baseline, best, competitor, other
    y: float
    outline: str  # the points of a polygon: the more calls took so long, the higher it is
    marks: tuple[Mark, ...]
    x_low: float
    x_high: float


@dataclass(frozen=True)
class Strips:
    width: int
    height: int
    left: float
    right: float
    bottom: float
    is_narrow: bool
    ticks: tuple[Tick, ...]
    strips: tuple[Strip, ...]
    left_out: int


def strips(report: Report, width: int) -> Strips | None:
    """How long single calls took at the target, the baseline first, then by speed; None without raw samples."""
    rows = [(row, _known(row.distribution)) for row in report.measurements if row.at_target]
    shown = [(row, points) for row, points in rows if len(points) > 2]
    if not shown:
        return None
    shown.sort(key=lambda pair: (pair[0].artifact != report.baseline, pair[0].latency_ms.p50))
    left_out, shown = max(0, len(shown) - MOST_STRIPS), shown[:MOST_STRIPS]
    narrow = width < 500
    left, right, pitch, above = (
        (12.0, width - 12.0, 62.0, 26.0) if narrow else (190.0, width - 18.0, 44.0, 4.0)
    )
    low = min(ms for _, points in shown for _, ms in points)
    high = max(ms for _, points in shown for _, ms in points)
    place, ticks = log_axis(low / 1.06, high * 1.06, left, right)
    if len(ticks) < 2:
        place, ticks = log_axis(low / 1.06, high * 1.06, left, right, range(1, 10))
    drawn = []
    for number, (row, points) in enumerate(shown):
        y = above + HALF + 4 + pitch * number
        spots = [(share, place(ms)) for share, ms in points]
        drawn.append(
            Strip(
                shortened(row.artifact, 24),
                f"p50 {figure(row.latency_ms.p50, 'ms')}",
                report.standing(row.artifact),
                y,
                _outline(spots, y),
                tuple(Mark(place(ms), name) for name, ms in _percentiles(row)),
                spots[0][1],
                spots[-1][1],
            )
        )
    bottom = above + pitch * len(shown)
    return Strips(width, int(bottom + 44), left, right, bottom, narrow, tuple(ticks), tuple(drawn), left_out)


def _known(distribution: Distribution | None) -> list[tuple[float, float]]:
    if distribution is None:
        return []
    pairs = zip(distribution.shares, distribution.ms, strict=True)
    return [(share, ms) for share, ms in pairs if ms is not None]


def _percentiles(row: Row) -> list[tuple[str, float]]:
    latency = row.latency_ms
    found = (("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99))
    return [(name, ms) for name, ms in found if ms is not None]


def _outline(spots: Sequence[tuple[float, float]], y: float) -> str:
    """The share of the calls in each bin, mirrored about ``y``, smoothed over its neighbours; its root, so that tails are seen."""
    first, last = spots[0][1], spots[-1][1]
    count = max(1, round((last - first) / BIN))
    edges = [first + (last - first) * i / count for i in range(count + 1)]
    shares = [_share(spots, edge) for edge in edges]
    raw = [after - before for before, after in itertools.pairwise(shares)]
    smooth = [(raw[max(0, i - 1)] + 2 * raw[i] + raw[min(count - 1, i + 1)]) / 4 for i in range(count)]
    tallest = max(smooth) or 1.0
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    heights = [max(0.8, HALF * math.sqrt(value / tallest)) for value in smooth]
    upper = [(first, y - 0.8), *((x, y - h) for x, h in zip(middles, heights, strict=True)), (last, y - 0.8)]
    lower = [(x, 2 * y - up) for x, up in reversed(upper)]
    return " ".join(f"{x:.1f},{at:.1f}" for x, at in (*upper, *lower))


def _share(spots: Sequence[tuple[float, float]], x: float) -> float:
    """Of the calls that stand at ``x`` or before it; between two known shares, as if spread evenly."""
    before = spots[0]
    for spot in spots:
        if spot[1] > x:
            between = (x - before[1]) / (spot[1] - before[1]) if spot[1] > before[1] else 0.0
            return before[0] + (spot[0] - before[0]) * max(0.0, between)
        before = spot
    return before[0]
