"""The steps of a run in order, with where each one reads from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploycompress.config.schema import PipelineConfig, StepConfig
from deploycompress.contracts import Stage
from deploycompress.registry import RUNTIMES, STAGES

MODEL = "model"
BASELINE = "baseline"
CHECKPOINT = "checkpoint"  # what a step's source was exported from, or is


@dataclass(frozen=True)
class Step:
    """One step; ``sources`` gives, for each of its inputs, step ids or one file."""

    id: str
    stage_name: str
    stage: Stage
    directory: str
    sources: Mapping[str, tuple[str, ...] | Path]
    timeout_s: float | None = None
    max_drop: float | None = None  # of a round of a repeat that backs off

    @property
    def source(self) -> str | None:
        """The step whose artefacts pass through when this one makes none."""
        chosen = self.sources.get("source")
        return chosen[-1] if isinstance(chosen, tuple) and chosen else None


def plan(config: PipelineConfig) -> tuple[Step, ...]:
    """``00-model``, the configured steps, and ``baseline`` before the first compressing one."""
    wanted = [(s.id, s.stage, STAGES.load(s.stage)(s.config), s) for s in config.stages]
    original = _original(wanted)
    flow = _Flow(original)
    flow.add(MODEL, MODEL, _model_stage(config), None)
    exported = _wants_exported(wanted, config.target.runtime)
    for id, name, stage, step in wanted:
        if id == original and flow.kinds == frozenset({"checkpoint"}) and _asked(wanted, BASELINE):
            if exported:
                flow.add(BASELINE, "export", _baseline_stage(wanted), None)
            else:
                flow.baseline = flow.last
        flow.add(id, name, stage, step)
    return tuple(flow.steps)


class _Flow:
    """Collects steps, and knows what ``last``, ``original``, ``baseline`` and ``all`` mean at each point."""

    def __init__(self, first_compressing: str | None) -> None:
        self.steps: list[Step] = []
        self.first_compressing = first_compressing
        self.last = ""
        self.original: str | None = None
        self.baseline: str | None = None
        self.kinds: frozenset[str] = frozenset()

    def add(self, id: str, name: str, stage: Stage, config: StepConfig | None) -> None:
        if id == self.first_compressing and self.original is None:
            self._before_compression()
        sources = {
            key: self._resolve(config.source if ref == "last" and config and config.source else ref)
            for key, ref in stage.inputs().items()
            if ref != CHECKPOINT
        }
        sources.update(
            (key, self._network_behind(sources["source"]))
            for key, ref in stage.inputs().items()
            if ref == CHECKPOINT
        )
        timeout_s = config.timeout.value / 1000 if config and config.timeout else None
        max_drop = config.back_off.value if config and config.back_off else None
        directory = f"{len(self.steps):02d}-{id}"
        self.steps.append(Step(id, name, stage, directory, sources, timeout_s, max_drop))
        if id == BASELINE:
            self.baseline = id
        elif stage.produces:
            self.last, self.kinds = id, stage.produces
            if "onnx" in stage.produces and self.first_compressing is None and self.baseline is None:
                self.baseline = id

    def _is_before_compression(self, step: Step) -> bool:
        """A network as it came, or as it was trained: what is compared with, and no result."""
        if step.stage.produces != frozenset({"checkpoint"}):
            return False
        ids = [s.id for s in self.steps]
        start = self.original or self.last
        return start in ids and ids.index(step.id) <= ids.index(start)

    def _network_behind(self, source: tuple[str, ...] | Path) -> tuple[str, ...]:
        by_id = {s.id: s for s in self.steps}
        id = source[-1] if isinstance(source, tuple) and source else None
        while id is not None and "checkpoint" not in by_id[id].stage.produces:
            id = by_id[id].source
        return (id,) if id is not None else ()

    def _before_compression(self) -> None:
        self.original = self.last
        if self.baseline is None and "onnx" in self.kinds:
            self.baseline = self.last

    def _resolve(self, ref: str) -> tuple[str, ...] | Path:
        if ref == "all":
            return tuple(
                s.id
                for s in self.steps
                if s.stage.produces and s.id != self.baseline and not self._is_before_compression(s)
            )
        named = {
            "last": self.last,
            "original": self.original or self.last,
            BASELINE: self.baseline or self.last,
        }
        if ref in named:
            return (named[ref],) if named[ref] else ()
        if any(s.id == ref for s in self.steps):
            return (ref,)
        return Path(ref)


def _original(wanted: list[tuple[str, str, Stage, StepConfig]]) -> str | None:
    return next((id for id, _, stage, _ in wanted if stage.compresses), None)


def _wants_exported(wanted: list[tuple[str, str, Stage, StepConfig]], runtime: str) -> bool:
    """Whether the baseline is an ONNX file: the target's runtime, or a step that reads no network, wants one."""
    opened = RUNTIMES.load(runtime).accepts
    return opened != frozenset({"checkpoint"}) or any(
        BASELINE in stage.inputs().values() and "checkpoint" not in stage.accepts for _, _, stage, _ in wanted
    )


def _asked(wanted: list[tuple[str, str, Stage, StepConfig]], ref: str) -> bool:
    return any(ref in stage.inputs().values() for _, _, stage, _ in wanted)


def _model_stage(config: PipelineConfig) -> Stage:
    from deploycompress.stages.model import InitialModel

    model = config.model
    return InitialModel(
        InitialModel.Config(weights=model.weights, expect=model.expect, tolerance=model.tolerance)
    )


def _baseline_stage(wanted: list[tuple[str, str, Stage, StepConfig]]) -> Stage:
    """The pipeline's own export, so that baseline and candidate differ by the compression alone."""
    for _, name, stage, _ in wanted:
        if name == "export":
            return stage
    export = STAGES.load("export")
    default: Stage = export(export.Config())
    return default
