"""What ``compile`` tried: a row for each candidate, the fastest first, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deploycompress.report.document import Report, Tried
from deploycompress.report.figures import bare, figure, plural, signed


@dataclass(frozen=True)
class TriedView:
    """One candidate; every figure as text, with a dash where there is none."""

    name: str
    p50: str
    speedup: str
    interval: str
    metric: str
    change: str
    cosine: str
    outcome: str


def rows_of(manifests: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The candidates that the steps' manifests tell of, for report.json."""
    return [row for manifest in manifests for row in manifest.get("details", {}).get("candidates", ())]


def tried_views(report: Report) -> list[TriedView]:
    ordered = sorted(report.tried, key=lambda row: (row.p50_ms is None, row.p50_ms or 0.0))
    return [_view(row, report) for row in ordered]


def _view(row: Tried, report: Report) -> TriedView:
    speedup = row.speedup
    return TriedView(
        name=f"{row.recipe}, {plural(row.threads, 'thread')}",
        p50=figure(row.p50_ms, "ms"),
        speedup=figure(None if speedup is None else speedup.value, "x"),
        interval=""
        if speedup is None
        else f"{bare(figure(speedup.low, 'x'))} to {bare(figure(speedup.high, 'x'))}",
        metric=figure(row.metric, report.primary.unit),
        change="" if row.loss is None else signed(_change(row.loss, report), report.change_unit),
        cosine="" if row.cosine is None else f"{row.cosine:.4f}",
        outcome=row.reason or "kept",
    )


def _change(loss: float, report: Report) -> float:
    """Of the metric itself, which a loss of an error raises."""
    return -loss if report.primary.higher_is_better else loss
