"""What a sweep makes better: figures by the names of the gates, and their values in a finished run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploycompress.config import metrics
from deploycompress.config.document import Document, KeyPath
from deploycompress.config.gates import METRIC
from deploycompress.config.schema import GATES, PipelineConfig
from deploycompress.config.wording import unknown
from deploycompress.contracts import MetricInfo
from deploycompress.registry import STAGES, TASKS
from deploycompress.report.document import Report, Row
from deploycompress.sweep.schema import Direction

SPEEDUP = "speedup"  # over the baseline that is measured beside the artefact: no two times of day in it
NOT_MEASURED = {
    "energy": "no device measures energy",
    "placement": "it is a list of operators and not a figure",
}
UNITS = {"throughput": "/s", SPEEDUP: "x"}
KNOWN = [*(name for name in GATES if name not in NOT_MEASURED), SPEEDUP]


@dataclass(frozen=True)
class Objective:
    name: str
    direction: Direction
    unit: str  # as in report.figures

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.direction == "maximise" else -1


@dataclass(frozen=True)
class Value:
    """One figure of one trial, with its 95 % interval where there is one; else all three are equal."""

    value: float
    low: float
    high: float


def read_objectives(
    document: Document, wanted: Mapping[str, Direction | None] | Sequence[str], base: PipelineConfig
) -> list[Objective]:
    """The objectives, each of which ``base`` produces; mistakes are noted in ``document``."""
    directions = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
    if not directions:
        document.report(("objectives",), f"no objective is given; known: {', '.join(KNOWN)}, metric:NAME")
    task = _task(base)
    if task is not None:
        _check_metrics(document, directions, wanted, base, task)
    found = []
    for name, stated in directions.items():
        place = _place(wanted, name)
        if name in NOT_MEASURED:
            document.report(place, f"nothing produces {name}: {NOT_MEASURED[name]}", key=True)
            continue
        if name not in KNOWN and not name.startswith(METRIC):
            document.report(place, unknown("objective", name, KNOWN, also="metric:NAME"), key=True)
            continue
        _check_stages(document, place, name, base)
        known, unit = _nature(name, task)
        if stated is not None and known is not None and stated != known:
            document.report(place, f"received {stated}, but {name} is better the other way; write {known}")
        elif stated is None and known is None:
            document.report(
                place, f"nothing says which way {name} is better; write {{{name}: maximise}}, or minimise"
            )
        else:
            found.append(Objective(name, stated or known or "maximise", unit))
    return found


def primary_of(base: PipelineConfig, objectives: Sequence[Objective]) -> MetricInfo:
    """The task's primary metric; of a user's task, which is not imported, what the objective on it says."""
    task = _task(base)
    if task is not None:
        info: MetricInfo = task.primary
        return info
    stated = next((o for o in objectives if o.name == "accuracy"), None)
    return MetricInfo("primary metric", stated is None or stated.direction == "maximise", "")


def value_of(objective: str, id: str | None, report: Report, packed: Mapping[str, int]) -> Value | None:
    """An artefact's figure; None where the report has none. ``packed``: bytes of packages by what they hold."""
    row, artefact = report.row(id), report.artefact(id)
    if row is None or artefact is None:
        return None
    if objective in ("artifact_size", "packed_size"):
        count = artefact.bytes if objective == "artifact_size" else packed.get(artefact.sha256)
        return None if count is None else _exact(count)
    if objective == "peak_memory":
        return None if row.peak_memory_bytes is None else _exact(row.peak_memory_bytes)
    if objective == SPEEDUP:
        gain = row.gain
        if id == report.baseline:
            return _exact(1.0)
        return None if gain is None else Value(gain.value, gain.low, gain.high)
    if objective == "throughput":
        return _exact(1000 * row.batch_size / row.latency_ms.mean) if row.latency_ms.mean > 0 else None
    if objective.startswith("latency_"):
        return _latency(objective.removeprefix("latency_"), report, row)
    return _metric(objective, report, row)


def _exact(value: float) -> Value:
    return Value(float(value), float(value), float(value))


def _latency(percentile: str, report: Report, row: Row) -> Value | None:
    """The median's interval is that of the speed-up, times the baseline beside it."""
    value, base = getattr(row.latency_ms, percentile), report.row(report.baseline)
    if value is None:
        return None
    if percentile != "p50" or row.gain is None or base is None or min(row.gain.low, row.gain.high) <= 0:
        return _exact(value)
    ends = (base.latency_ms.p50 / row.gain.high, base.latency_ms.p50 / row.gain.low)
    return Value(value, min(value, *ends), max(value, *ends))


def _metric(objective: str, report: Report, row: Row) -> Value | None:
    """Of the primary metric, the interval is that of its difference to the baseline, sample by sample."""
    name = report.primary.name if objective == "accuracy" else objective.removeprefix(METRIC)
    figure, _, label = name.rpartition(".")
    by_class = report.by_class.get(row.artifact, {}).get(figure, {})
    value = row.metrics.get(name, by_class.get(label))
    if value is None:
        return None
    paired = report.differences.get(row.artifact)
    if name != report.primary.name or paired is None:
        return _exact(value)
    ends = (value - paired.value + paired.low, value - paired.value + paired.high)
    return Value(value, min(value, *ends), max(value, *ends))


# ---------------------------------------------------------------- against the base pipeline


def _task(base: PipelineConfig) -> Any:
    """The built-in task; None for a user's, which is not imported before the first trial."""
    return TASKS.load(base.task.name)(**base.task.args) if base.task.name in TASKS else None


def _check_metrics(
    document: Document, names: Mapping[str, Any], wanted: object, base: PipelineConfig, task: Any
) -> None:
    """As for gates: every metric is one that the task, or a corruption of the benchmark, gives."""
    asked = {name: None for name in names if name.startswith(METRIC) or name == metrics.WORST_CLASS}
    scratch = Document(document.name, {"gates": asked})
    scratch.places = {("gates", name): document.place(_place(wanted, name)) for name in asked}
    metrics.check_gates(scratch, asked, task, base.stages)
    document.problems += scratch.problems


def _check_stages(document: Document, place: KeyPath, name: str, base: PipelineConfig) -> None:
    stages = [step.stage for step in base.stages]
    needed = {"benchmark", "pack"} if name == "packed_size" else {"benchmark"}
    if all(stage in STAGES for stage in stages):  # a user's stage may do anything
        for stage in sorted(needed - set(stages)):
            message = f"nothing produces {name}: it comes from a {stage} stage; add `- {stage}` to the base's stages"
            document.report(place, message, key=True)


def _nature(name: str, task: Any) -> tuple[Direction | None, str]:
    """Which way it is better, None where only the user knows, and its unit."""
    if name in UNITS:
        return "maximise", UNITS[name]
    if name.startswith("latency_"):
        return "minimise", "ms"
    if name in ("artifact_size", "packed_size", "peak_memory"):
        return "minimise", "bytes"
    if task is None:
        return None, ""
    known = metrics.of_task(task)
    plain = name.removeprefix(METRIC)
    info = task.primary if name == "accuracy" else known.get(plain, known.get(plain.rpartition(".")[0]))
    if info is None:
        return ("maximise" if task.primary.higher_is_better else "minimise"), task.primary.unit  # corrupted
    return ("maximise" if info.higher_is_better else "minimise"), info.unit


def _place(wanted: object, name: str) -> KeyPath:
    return ("objectives", name if isinstance(wanted, Mapping) else list(wanted).index(name))  # type: ignore[call-overload]
