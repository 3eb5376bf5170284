"""How much better or worse each class became: bars to both sides of no change."""

from __future__ import annotations

from dataclasses import dataclass

from deploycompress.report.document import Report
from deploycompress.report.figures import figure, signed
from deploycompress.report.metrics import class_info

MOST_CLASSES = 24  # those that lost most; the table below has more


@dataclass(frozen=True)
class ClassBar:
    label: str
    value: str
    change: str
    tone: str  # better, worse, total
    start: float  # per cent of the width; no change is at 50
    length: float


@dataclass(frozen=True)
class Classes:
    artifact: str
    figure: str
    bars: tuple[ClassBar, ...]
    left_out: int
    note: str


def class_changes(report: Report) -> Classes | None:
    """The first figure of each class, which is the one that a gate guards, of the best artefact against the baseline."""
    ours, theirs = (report.by_class.get(id or "", {}) for id in (report.best_id, report.baseline))
    if not ours or not theirs or report.best_id == report.baseline:
        return None
    guarded = next(iter(ours))
    before = theirs.get(guarded, {})
    changes = {label: value - before[label] for label, value in ours[guarded].items() if label in before}
    if not changes:
        return None
    info = class_info(report, guarded)
    sign = 1 if info.higher_is_better else -1
    order = sorted(changes, key=lambda label: (sign * changes[label], label))[:MOST_CLASSES]
    widest = max(abs(changes[label]) for label in order) or 1.0
    bars = []
    for label in order:
        change = changes[label]
        length = 48 * abs(change) / widest
        better = sign * change > 0
        tone = "total" if change == 0 else "better" if better else "worse"
        bars.append(
            ClassBar(
                label,
                figure(ours[guarded][label], info.unit),
                signed(change, info.change_unit),
                tone,
                50 if better else 50 - length,
                max(0.6, length),
            )
        )
    return Classes(
        str(report.best_id), guarded, tuple(bars), len(changes) - len(bars), _note(report, len(changes))
    )


def _note(report: Report, classes: int) -> str:
    """What one sample is worth, where samples have classes."""
    samples = report.data.test_samples
    if not samples or report.primary.unit != "share" or samples < classes:
        return ""
    each = samples / classes
    return f"A class has about {each:,.0f} of the {samples:,} samples, so one of them is {figure(1 / each, 'points')}"
