"""Every metric of the task on the test split: artefact by artefact, and class by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deploycompress.report.document import Metric, Report
from deploycompress.report.figures import figure, signed

MOST_CLASSES = 100  # the worst ones; report.json has them all


@dataclass(frozen=True)
class Cell:
    value: str
    change: str  # against the baseline; empty where that is the baseline itself, or there is none


@dataclass(frozen=True)
class Line:
    """A metric with a cell for each artefact, or a class with one for each figure."""

    name: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    heads: tuple[str, ...]
    lines: tuple[Line, ...]
    summary: str = ""
    left_out: int = 0


def metrics_table(report: Report) -> Table | None:
    """A line for each metric, the primary one first; None where there is no other metric than that."""
    rows = [row for row in report.measurements if row.at_target and row.metrics]
    rows.sort(key=lambda row: (row.artifact != report.baseline, row.latency_ms.p50))
    measured = {name for row in rows for name in row.metrics}
    order = dict.fromkeys((report.primary.name, *report.figures, *sorted(measured)))
    names = [name for name in order if name in measured]
    if len(names) < 2:
        return None
    base = report.row(report.baseline)
    before: Mapping[str, float] = {} if base is None else base.metrics
    lines = []
    for name in names:
        info = class_info(report, name)
        cells = [
            _cell(row.metrics.get(name), None if row is base else before.get(name), info) for row in rows
        ]
        lines.append(Line(name, "" if info.higher_is_better else "lower is better", tuple(cells)))
    return Table(tuple(row.artifact for row in rows), tuple(lines))


def class_table(report: Report) -> Table | None:
    """A line for each class of the best artefact, the worst first by the figure that a gate on it guards."""
    chosen = report.best_id if report.best_id in report.by_class else report.baseline
    ours = report.by_class.get(chosen or "", {})
    if not any(ours.values()):
        return None
    theirs = {} if chosen == report.baseline else report.by_class.get(report.baseline or "", {})
    guarded = next(iter(ours))
    infos = {name: class_info(report, name) for name in ours}
    sign = 1 if infos[guarded].higher_is_better else -1
    classes = dict.fromkeys(label for values in ours.values() for label in values)
    worst_first = sorted(classes, key=lambda label: sign * ours[guarded].get(label, sign * float("inf")))
    lines = [
        Line(
            label,
            "",
            tuple(
                _cell(values.get(label), theirs.get(name, {}).get(label), infos[name])
                for name, values in ours.items()
            ),
        )
        for label in worst_first[:MOST_CLASSES]
    ]
    first = lines[0].cells[0]
    change = f" ({first.change})" if first.change else ""
    summary = f"Class by class of {chosen}: the worst of {len(classes)} is {lines[0].name}, {guarded} {first.value}{change}"
    return Table(tuple(ours), tuple(lines), summary, len(classes) - len(lines))


def class_info(report: Report, name: str) -> Metric:
    """What is known of a metric; a class's figure that is no metric itself is of the kind of the worst class's."""
    known: Iterable[Metric | None] = (
        report.primary if name == report.primary.name else None,
        report.figures.get(name),
        report.figures.get("worst_class"),
    )
    of_class = any(name in tables for tables in report.by_class.values())
    return next((info for info in known if info is not None), report.primary if of_class else Metric(unit=""))


def _cell(value: float | None, before: float | None, info: Metric) -> Cell:
    change = "" if value is None or before is None else signed(value - before, info.change_unit)
    return Cell(figure(value, info.unit), change)
