"""The geometry of the report's horizontal bars: waterfalls of what each stage bought, widths of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deploycompress.report.document import Report
from deploycompress.report.figures import figure, signed, significant

Tone = Literal["total", "better", "worse"]
NARROWEST_SHARE = 0.03  # a zoomed axis shows at least 3 points, so that noise does not fill it


# ---------------------------------------------------------------- waterfalls


@dataclass(frozen=True)
class Bar:
    """One row: from ``start`` over ``length``, in per cent of the width."""

    label: str
    text: str
    tone: Tone
    start: float
    length: float


@dataclass(frozen=True)
class Waterfall:
    title: str
    note: str
    bars: tuple[Bar, ...]


def waterfalls(report: Report) -> list[Waterfall]:
    """What each stage bought: milliseconds, points and bytes; then the metric during recovery."""
    told = report.waterfall
    found = []
    if len(told) >= 2:
        names = [", ".join(row.steps) for row in told]
        found.append(_waterfall("Latency", "p50", names, [r.latency_ms for r in told], "ms", "ms", False))
        found.append(_waterfall("Size", "", names, [float(r.bytes) for r in told], "bytes", "bytes", False))
        metrics = [row.metric for row in told]
        if all(value is not None for value in metrics):
            values = [value for value in metrics if value is not None]
            found.append(_metric_waterfall(report, "test split", names, values))
    if len(report.validation) >= 2:
        steps = [row.step for row in report.validation]
        found.append(
            _metric_waterfall(report, "validation split", steps, [r.value for r in report.validation])
        )
    return found


def _metric_waterfall(report: Report, split: str, names: Sequence[str], values: Sequence[float]) -> Waterfall:
    primary = report.primary
    title = primary.name.capitalize() if primary.name.islower() else primary.name
    return _waterfall(
        title, split, names, values, primary.unit, report.change_unit, primary.higher_is_better, zoomed=True
    )


def _waterfall(
    title: str,
    note: str,
    names: Sequence[str],
    values: Sequence[float],
    unit: str,
    change: str,
    higher_is_better: bool,
    zoomed: bool = False,
) -> Waterfall:
    """The first value, each change, the last value. A zoomed axis does not begin at zero: no bars from it."""
    low, high = (min(values), max(values)) if zoomed else (0.0, max(values))
    span = (high - low) or 1.0
    if zoomed:
        least = NARROWEST_SHARE if unit == "share" else 0.0
        middle, span = (low + high) / 2, max(1.12 * span, least)
        low = middle - span / 2

    def at(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - low) / span))

    def total(name: str, value: float) -> Bar:
        start = max(0.0, at(value) - 1) if zoomed else 0.0
        return Bar(name, figure(value, unit), "total", start, max(1.0, at(value) - start))

    bars = [total(names[0], values[0])]
    for name, before, after in zip(names[1:], values, values[1:], strict=False):
        tone: Tone = "better" if (after > before) == higher_is_better else "worse"
        start, length = min(at(before), at(after)), abs(at(after) - at(before))
        bars.append(
            Bar(
                name,
                signed(after - before, change),
                "total" if after == before else tone,
                min(start, 99.2),
                max(0.8, length),
            )
        )
    bars.append(total("result", values[-1]))
    return Waterfall(title, note, tuple(bars))


# ---------------------------------------------------------------- widths


@dataclass(frozen=True)
class WidthBar:
    layer: str
    text: str
    before: float  # per cent of the widest layer
    after: float


def width_bars(report: Report) -> list[WidthBar]:
    widest = max((row.before for row in report.widths), default=0) or 1
    return [
        WidthBar(
            row.layer,
            f"{row.before} → {row.after}" if row.before != row.after else f"{row.before}",
            100 * row.before / widest,
            100 * min(row.before, row.after) / widest,
        )
        for row in report.widths
    ]


def remaining(report: Report) -> str:
    """How many channels are left, in words."""
    before, after = (sum(getattr(row, side) for row in report.widths) for side in ("before", "after"))
    if not before:
        return ""
    return f"{significant(100 * after / before)} % of {before:,} channels in {len(report.widths)} layers are left"
