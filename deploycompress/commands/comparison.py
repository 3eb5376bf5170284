"""A comparison: its lines, each a metric of BASE and HEAD with what their difference says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from deploycompress.commands.side_by_side import Row, SideBySide
from deploycompress.measure.intervals import LEAST_EFFECT, Statistic, least_effect, word
from deploycompress.measure.measurement import Speedup
from deploycompress.report import document
from deploycompress.report.figures import figure, limit, signed
from deploycompress.report.paired import difference
from deploycompress.report.speed import brief, undecided
from deploycompress.report.verdict import Verdict

Word = Literal["better", "worse", "same", "cannot tell", "not compared"]

SCHEMA = 1
ALIKE = {
    "artifact_size": 0.01,
    "packed_size": 0.01,
    "peak_memory": 0.05,
    "gpu_memory": 0.05,
    "energy": 0.05,
    "load": 0.5,
}  # shares below which it is the same
SPEED: dict[str, Statistic] = {
    "latency_p50": "p50",
    "latency_p90": "p90",
    "latency_p99": "p99",
    "throughput": "mean",
}
# On a shared machine two of 34 files had another p99 than themselves after five seconds.
TAILS = ("latency_p90", "latency_p99")
MEASURED = (*SPEED, "peak_memory", "load")  # what another machine has others of


@dataclass(frozen=True)
class Change:
    """HEAD's difference to BASE in ``unit``'s base unit ("points", or "ratio": a share of BASE), with its interval."""

    value: float
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    metric: str
    unit: str
    base: float | None
    head: float | None
    change: Change | None
    verdict: Word
    message: str = ""
    gates: tuple[Verdict, ...] = ()

    @property
    def limits(self) -> str:
        """Its gates as they would be written by hand."""
        return ", ".join(limit(v.bound, v.limit, v.unit) for v in self.gates)

    @property
    def rulings(self) -> str:
        return ", ".join(v.verdict + (" (warns)" if v.only_warns else "") for v in self.gates)


@dataclass(frozen=True)
class Comparison:
    base: str
    head: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    measured: bool  # now, side by side; otherwise figures are those of the reports
    environment: Mapping[str, Any]

    @property
    def blocked(self) -> list[Verdict]:
        return [v for line in self.lines for v in line.gates if v.blocks]

    @property
    def worse(self) -> list[Line]:
        return [line for line in self.lines if line.verdict == "worse"]

    @property
    def speed_compared(self) -> bool:
        return any(x.metric in SPEED and x.verdict != "not compared" for x in self.lines)

    @property
    def headline(self) -> str:
        """Faster, slower, or cannot tell; and what else is to be known first."""
        line = next(x for x in self.lines if x.metric == "latency_p50")
        words = {
            "better": "faster",
            "worse": "slower",
            "same": "as fast",
            "not compared": "not compared in speed",
        }
        told = (
            f"HEAD is {words[line.verdict]}"
            if line.verdict in words
            else "Cannot tell whether HEAD is faster or slower"
        )
        change = spelt(line.change)
        told += f": p50 {change}" if change else ""
        told += f"; worse: {', '.join(x.metric for x in self.worse)}" if self.worse else ""
        return told + (
            f"; gates not met: {', '.join(dict.fromkeys(v.metric for v in self.blocked))}"
            if self.blocked
            else ""
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "base": self.base,
            "head": self.head,
            "headline": self.headline,
            "measured": self.measured,
            "rows": [asdict(line) for line in self.lines],
            "notes": list(self.notes),
            "environment": dict(self.environment),
        }


def spelt(change: Change | None) -> str:
    """``−24.4 % (−25.1 % to −23.8 %)``; empty where there is none."""
    if change is None:
        return ""
    text = signed(change.value, change.unit)
    if change.low is None or change.high is None:
        return text
    return f"{text} ({signed(change.low, change.unit)} to {signed(change.high, change.unit)})"


# ---------------------------------------------------------------- the lines


def speed_lines(found: SideBySide) -> list[Line]:
    """HEAD, the second row, beside BASE, the first one."""
    base, head = found.rows
    return [_speed_line(metric, base, head, found) for metric in SPEED]


def _speed_line(metric: str, base: Row, head: Row, found: SideBySide) -> Line:
    statistic = SPEED[metric]
    if metric == "throughput":
        values, unit = (base.throughput, head.throughput), "/s"
    else:
        values, unit = tuple(getattr(r.measurement.latency_ms, statistic) for r in (base, head)), "ms"
    speedup = head.speedups[statistic]
    if speedup is None:
        return Line(metric, unit, *values, None, "cannot tell", f"too few samples for {statistic}")
    if metric in TAILS and any(brief(row.measurement) for row in found.rows):
        return Line(metric, unit, *values, of_speedup(speedup, metric), "cannot tell", "takes --mode full")
    told = found.word(head, statistic) or "cannot tell"
    floor = least_effect(found.floor(statistic) or 0.0)
    message = "" if told != "cannot tell" else f"differences below {figure(floor, 'ratio')} are noise"
    if told == "as fast":
        message = f"within {figure(LEAST_EFFECT, 'ratio')}"
    message = undecided(head.measurement) or message
    return Line(metric, unit, *values, of_speedup(speedup, metric), _word(told), message)


def of_speedup(speedup: Speedup, metric: str) -> Change:
    """As a change of a latency, which falls where the speed-up rises, or of the throughput."""
    if metric == "throughput":
        return Change(speedup.value - 1, "ratio", speedup.low - 1, speedup.high - 1)
    return Change(1 / speedup.value - 1, "ratio", 1 / speedup.high - 1, 1 / speedup.low - 1)


def through_the_baseline(base: document.Speedup, head: document.Speedup) -> tuple[Change, Word]:
    """From the speed-ups of two runs over one baseline file: its interval holds what both of theirs allow."""
    speedup = Speedup(head.value / base.value, head.low / base.high, head.high / base.low)
    return of_speedup(speedup, "latency_p50"), _word(word(speedup, 0.0))


def _word(told: str) -> Word:
    words: dict[str, Word] = {"faster": "better", "slower": "worse", "as fast": "same"}
    return words.get(told, "cannot tell")


def plain_line(metric: str, unit: str, base: float | None, head: float | None, noise: float = 0.0) -> Line:
    """Two figures of which less is better, without an interval; ``noise``: the share by which BASE differs from itself.

    A size is what it is. Memory and load time are those of one process each: a difference below ``ALIKE`` and twice
    the noise says nothing.
    """
    if not base or head is None:
        return Line(metric, unit, base, head, None, "not compared", "one of them has no such figure")
    share = head / base - 1
    alike = max(ALIKE[metric], 2 * noise)
    verdict: Word = "worse" if share > alike else "better" if share < -alike else "same"
    if verdict == "same" and head != base and metric not in ("artifact_size", "packed_size"):
        verdict = "cannot tell"
    message = (
        f"one process each; differences below {figure(alike, 'ratio')} are noise"
        if verdict == "cannot tell"
        else ""
    )
    return Line(metric, unit, base, head, Change(share, "ratio"), verdict, message)


def metric_line(
    metric: str,
    info: document.Metric,
    figures: tuple[float | None, float | None],
    scores: tuple[Sequence[float], Sequence[float]] | None,
) -> Line:
    """A metric of the task: paired on the same samples where there are ``scores``, else as two figures."""
    base, head = figures
    unit, change_unit = info.unit, info.change_unit
    if base is None or head is None:
        return Line(metric, unit, base, head, None, "not compared", "one of them has no such figure")
    if scores is None:
        verdict: Word = "same" if base == head else "cannot tell"
        message = "" if base == head else "two figures, without scores of the same samples"
        return Line(metric, unit, base, head, Change(head - base, change_unit), verdict, message)
    found = difference(*scores)
    change = Change(found.value, change_unit, found.low, found.high)
    worse, better = (
        (found.high < 0, found.low > 0) if info.higher_is_better else (found.low > 0, found.high < 0)
    )
    same = list(scores[0]) == list(scores[1])
    verdict = "same" if same else "worse" if worse else "better" if better else "cannot tell"
    return Line(metric, unit, base, head, change, verdict, f"paired on {found.samples} samples")


def worst_class_line(
    info: document.Metric, base: Mapping[str, float], head: Mapping[str, float]
) -> Line | None:
    """The class that does worst on each side, and the one that lost most; None where there are no classes."""
    if not base or not head:
        return None
    worst = min if info.higher_is_better else max
    sign = 1 if info.higher_is_better else -1
    line = metric_line("worst_class", info, (worst(base.values()), worst(head.values())), None)
    losses = {name: sign * (base[name] - head[name]) for name in base if name in head}
    name, loss = max(losses.items(), key=lambda item: item[1], default=("", 0.0))
    told = f"class {name} lost most: {figure(loss, info.change_unit)}" if loss > 0 else "no class lost"
    verdict: Word = "same" if dict(base) == dict(head) else "cannot tell"  # a class has few samples
    return Line("worst_class", line.unit, line.base, line.head, line.change, verdict, told)
