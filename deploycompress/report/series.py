"""A run's figures as series that a benchmark service follows from run to run: Bencher, github-action-benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from sys import float_info
from typing import Any

from deploycompress.report import view
from deploycompress.report.document import Report, Row
from deploycompress.report.figures import shortened

NS_PER_MS = 1e6
MOST_MEASURE = 64  # characters of the name of a measure at Bencher; of a benchmark 1024


@dataclass(frozen=True)
class Figure:
    """One figure of one artefact, with its 95 % interval where there is one."""

    measure: str  # Bencher's name of it; latency (ns) and file-size (bytes) are measures that Bencher has
    title: str
    unit: str
    value: float
    lower_is_better: bool = True
    low: float | None = None
    high: float | None = None


def bencher(report: Report) -> str:
    """Bencher Metric Format: benchmark -> measure -> value, and its interval where there is one.

    Times are in nanoseconds, as Bencher's own measure of latency is; sizes in bytes, as its own of a file is.
    """
    document = {
        name: {figure.measure: _metric(figure) for figure in _figures(report, row)}
        for name, row in _series(report).items()
    }
    return _json(document)


def github_action_benchmark(report: Report) -> str:
    """The list that github-action-benchmark reads as customSmallerIsBetter: what is better the lower it is."""
    entries = [
        {"name": f"{name}: {figure.title}", "unit": figure.unit, "value": figure.value}
        for name, row in _series(report).items()
        for figure in _figures(report, row)
        if figure.lower_is_better
    ]
    return _json(entries)


def _series(report: Report) -> dict[str, Row]:
    """Every measured artefact in its configuration by a name that the next run gives it too, and the best one."""
    run = shortened(report.name, 200)
    named = {
        f"{run}: {shortened(row.artifact, 400)} ({shortened(view.where(row), 300)})": row
        for row in reversed(report.measurements)  # of two with one name the first stays
    }
    found = dict(reversed(named.items()))
    best = report.row(report.best_id)
    # Which artefact is the best one may change with a commit; this series goes on all the same.
    return found if best is None else found | {f"{run}: best": best}


def _figures(report: Report, row: Row) -> Iterator[Figure]:
    primary, latency = report.primary, row.latency_ms
    if primary.name in row.metrics:
        unit = primary.unit or "1"
        value, lower = row.metrics[primary.name], not primary.higher_is_better
        yield Figure(shortened(primary.name, MOST_MEASURE), primary.name, unit, value, lower)
    for name, value_ms in (("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99)):
        if value_ms is not None:
            measure = "latency" if name == "p50" else f"latency-{name}-ns"
            yield Figure(measure, f"{name} latency", "ms", value_ms)
    artefact = report.artefact(row.artifact)
    if artefact is not None:
        yield Figure("file-size", "size", "bytes", artefact.bytes)
    if row.peak_memory_bytes is not None:
        yield Figure("peak-memory-bytes", "peak memory", "bytes", row.peak_memory_bytes)
    for measure, title, value_ms in (
        ("load-ns", "load", row.load_ms),
        ("first-inference-ns", "first inference", row.first_inference_ms),
    ):
        if value_ms is not None:
            yield Figure(measure, title, "ms", value_ms)
    if row.gain is not None:
        gain = row.gain
        yield Figure("speed-up", "speed-up", "x", gain.value, False, gain.low, gain.high)


def _metric(figure: Figure) -> dict[str, float]:
    interval = {"lower_value": figure.low, "upper_value": figure.high}
    values = {"value": figure.value} | {name: value for name, value in interval.items() if value is not None}
    if figure.unit == "ms":
        values = {name: min(round(value * NS_PER_MS, 3), float_info.max) for name, value in values.items()}
    return values


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
