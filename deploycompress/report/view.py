"""The rows that page, summary and terminal show, spelt once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploycompress.report.document import Artefact, Gate, Note, Report, Row, Stage
from deploycompress.report.figures import (
    NOTHING,
    bare,
    clean,
    duration,
    figure,
    limit,
    plural,
    shortened,
    signed,
    size,
)

VERDICTS = {
    "pass": "Passed",
    "fail": "Failed",
    "inconclusive": "Inconclusive",
    "error": "Stopped by an error",
}
MARKS = {"pass": "✓", "fail": "✕", "inconclusive": "?", "error": "✕"}
HOPS = {
    "masked_relative": "pruned against the same channels masked, largest relative difference",
    "checkpoint_relative": "checkpoint saved and loaded again, largest relative difference",
    "export_max_abs": "ONNX against PyTorch, largest difference",
    "export_relative": "ONNX against PyTorch, largest relative difference",
    "simplify_relative": "simplified against exported, largest relative difference",
    "quantize_cosine": "quantized against its source, cosine of the outputs",
    "quantize_top1_agreement": "quantized against its source, same first class",
    "engine_cosine": "engine against its source, cosine of the outputs",
}
MOST_FACTS = 200


@dataclass(frozen=True)
class GateView:
    metric: str
    limit: str
    value: str
    verdict: str  # pass, fail, inconclusive
    word: str
    mark: str
    message: str


@dataclass(frozen=True)
class ArtefactView:
    """One artefact in one configuration; every figure as text, with a dash where there is none."""

    id: str
    precision: str
    where: str
    size: str
    size_ratio: str
    p50: str
    p90: str
    p99: str
    speedup: str
    speedup_interval: str
    metric: str
    change: str
    change_interval: str
    memory: str
    load: str
    first: str
    is_best: bool
    is_baseline: bool
    is_competitor: bool
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """As plain text has it, which knows no badges."""
        return f"{self.id} (competitor)" if self.is_competitor else self.id


@dataclass(frozen=True)
class Tile:
    """One figure of the best artefact beside the baseline's."""

    title: str
    after: str
    before: str
    change: str


@dataclass(frozen=True)
class StageView:
    name: str
    kind: str
    state: str  # done, reused, skipped, failed, not run
    time: str
    share: float  # of the longest stage, 0..1
    metrics: str


# ---------------------------------------------------------------- rows


def told(note: Note) -> str:
    """What is said, with what it is about."""
    return f"{note.subject}: {note.message}" if note.subject else note.message


def warnings(report: Report) -> list[tuple[str, str]]:
    """Stage and text of everything that went on otherwise than was asked for."""
    return [(s.name, told(n)) for s in report.stages for n in s.notes if n.kind == "warning"]


def gate_view(gate: Gate) -> GateView:
    word = gate.verdict + (" (warns)" if gate.only_warns else "")
    return GateView(
        gate.metric,
        limit(gate.bound, gate.limit, gate.unit),
        figure(gate.value, gate.unit),
        gate.verdict,
        word,
        MARKS[gate.verdict],
        gate.message,
    )


def artefact_views(report: Report, at_target: bool = True) -> list[ArtefactView]:
    """Every measured artefact in the configurations asked for, the baseline first, then by speed."""
    rows = [row for row in report.measurements if row.at_target is at_target]
    rows.sort(key=lambda row: (row.artifact != report.baseline, row.latency_ms.p50))
    return [_artefact_view(report, row) for row in rows]


def _artefact_view(report: Report, row: Row) -> ArtefactView:
    artefact, base = report.artefact(row.artifact), report.artefact(report.baseline)
    latency, speedup, unit = row.latency_ms, row.gain, report.change_unit
    difference = report.differences.get(row.artifact)
    ratio = (
        artefact.bytes / base.bytes
        if artefact is not None and base is not None and base.bytes and artefact is not base
        else None
    )
    return ArtefactView(
        id=row.artifact,
        precision=row.precision or (artefact.precision if artefact is not None else ""),
        where=where(row),
        size=figure(None if artefact is None else artefact.bytes, "bytes"),
        size_ratio="" if ratio is None else figure(ratio, "ratio"),
        p50=figure(latency.p50, "ms"),
        p90=figure(latency.p90, "ms"),
        p99=figure(latency.p99, "ms"),
        speedup=figure(None if speedup is None else speedup.value, "x"),
        speedup_interval=""
        if speedup is None
        else f"{bare(figure(speedup.low, 'x'))} to {bare(figure(speedup.high, 'x'))}",
        metric=figure(row.metrics.get(report.primary.name), report.primary.unit),
        change=""
        if row.artifact == report.baseline or report.change(row) is None
        else signed(report.change(row), unit),
        change_interval=""
        if difference is None
        else f"{bare(signed(difference.low, unit))} to {bare(signed(difference.high, unit))}",
        memory=figure(row.peak_memory_bytes, "bytes"),
        load=figure(row.load_ms, "ms"),
        first=figure(row.first_inference_ms, "ms"),
        is_best=row.artifact == report.best_id,
        is_baseline=row.artifact == report.baseline,
        is_competitor=row.artifact in report.competitors,
        notes=row.notes,
    )


def where(row: Row) -> str:
    """The configuration that a row was measured in."""
    return (
        f"{row.device}, {row.runtime} {row.provider}, {plural(row.threads, 'thread')}, batch {row.batch_size}"
    )


def unmeasured(report: Report) -> list[Artefact]:
    """What was made on the way and not measured: checkpoints, mostly."""
    measured = {row.artifact for row in report.measurements}
    return [artefact for artefact in report.artifacts if artefact.id not in measured]


def row_notes(report: Report) -> list[tuple[str, str]]:
    """What the benchmark says about an artefact's rows, each thing once."""
    said = {(row.artifact, note): None for row in report.measurements for note in row.notes}
    return list(said)


def tiles(report: Report) -> list[Tile]:
    """Best beside baseline: latency, metric, size, memory, load."""
    row, base = report.row(report.best_id), report.row(report.baseline)
    ours, theirs = report.artefact(report.best_id), report.artefact(report.baseline)
    if row is None or base is None or ours is None or theirs is None or row is base:
        return []
    shown = {view.id: view for view in artefact_views(report)}
    after, before = shown[ours.id], shown[theirs.id]
    found = [
        Tile("p50 latency", after.p50, before.p50, after.speedup),
        Tile(report.primary.name, after.metric, before.metric, after.change),
        Tile("size", after.size, before.size, f"{after.size_ratio} of it"),
        Tile(
            "peak memory", after.memory, before.memory, _less(row.peak_memory_bytes, base.peak_memory_bytes)
        ),
        Tile("load", after.load, before.load, _less(row.load_ms, base.load_ms)),
    ]
    return [tile for tile in found if NOTHING not in (tile.after, tile.before)]


def stage_views(report: Report) -> list[StageView]:
    longest = max((stage.seconds for stage in report.stages), default=0.0)
    return [
        StageView(
            stage.name,
            stage.kind,
            _state(stage, report),
            duration(stage.seconds) if stage.state != "not_run" else NOTHING,
            max(0.0, stage.seconds / longest) if longest > 0 else 0.0,
            _stage_metrics(stage, report),
        )
        for stage in report.stages
    ]


def parity_rows(report: Report) -> list[tuple[str, str, str]]:
    """Step, what was compared, figure."""
    return [
        (stage.name, HOPS.get(key, key.replace("_", " ")), _parity(key, value))
        for stage in report.stages
        for key, value in stage.parity.items()
    ]


def facts(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The environment as a flat list of name and text."""
    found: list[tuple[str, str]] = []
    for name, value in environment.items():
        label = clean(f"{prefix}{name}").replace("_", " ")
        if isinstance(value, Mapping):
            found += facts(value, f"{prefix}{name} · ")
        elif isinstance(value, (list, tuple)):
            found.append((label, shortened(clean(", ".join(map(str, value))), 400)))
        elif name.endswith("_bytes") and isinstance(value, int):
            found.append((label.removesuffix(" bytes"), size(value)))
        elif value is not None:
            found.append((label, shortened(clean(str(value)), 400)))
    return found[:MOST_FACTS]


# ---------------------------------------------------------------- small decisions


def _state(stage: Stage, report: Report) -> str:
    if stage.state != "done":
        return stage.state.replace("_", " ")
    if stage.reused:
        return "reused"
    made = any(artefact.stage == stage.name for artefact in report.artifacts)
    return "skipped" if not made and any(note.kind == "skipped" for note in stage.notes) else "done"


def _stage_metrics(stage: Stage, report: Report) -> str:
    """The figures a reader wants of a stage: its metric on the validation split, what remains of the model."""
    told = []
    validated = stage.metrics.get(f"val_{report.primary.name}")
    if validated is not None:
        told.append(f"{report.primary.name} {figure(validated, report.primary.unit)} (validation)")
    for key, word in (("macs_ratio", "MACs"), ("params_ratio", "parameters")):
        if key in stage.metrics:
            told.append(f"{figure(stage.metrics[key], 'ratio')} of the {word}")
    return ", ".join(told)


def _parity(key: str, value: float) -> str:
    if key.endswith("agreement"):
        return figure(value, "share")
    if key.endswith("cosine"):
        return f"{value:.5f}"
    return "0" if value == 0 else f"{value:.1e}"


def _less(after: float | None, before: float | None) -> str:
    return "" if after is None or not before else f"{figure(after / before, 'ratio')} of it"
