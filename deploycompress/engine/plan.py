"""The steps of a run in order, with where each one reads from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import PipelineConfig, StepConfig
from deploycompress.contracts import Stage
from deploycompress.registry import RUNTIMES, STAGES

MODEL = "model"
BASELINE = "baseline"
NETWORK = frozenset({"checkpoint"})  # the kinds of a step that makes a network and nothing else
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
    flow = _Flow(original, RUNTIMES.load(config.target.runtime).accepts == NETWORK)
    flow.add(MODEL, MODEL, _model_stage(config), None, config.model.timeout)
    exported = [stage for _, _, stage, _ in wanted if not flow.compares_networks(stage)]
    for id, name, stage, step in wanted:
        asked = any(BASELINE in stage.inputs().values() for stage in exported)
        if id == original and flow.kinds == NETWORK and asked:
            flow.add(BASELINE, "export", *_baseline(wanted))
        flow.add(id, name, stage, step)
    return tuple(flow.steps)


class _Flow:
    """Collects steps, and knows what ``last``, ``original``, ``baseline`` and ``all`` mean at each point."""

    def __init__(self, first_compressing: str | None, networks: bool) -> None:
        """``networks``: the target's runtime runs checkpoints, and nothing else."""
        self.networks = networks
        self.network = ""  # the last step that made a checkpoint and nothing else
        self.steps: list[Step] = []
        self.first_compressing = first_compressing
        self.last = ""
        self.original: str | None = None
        self.baseline: str | None = None
        self.kinds: frozenset[str] = frozenset()

    def add(
        self, id: str, name: str, stage: Stage, config: StepConfig | None, timeout: Quantity | None = None
    ) -> None:
        """``timeout``: of a step that nobody configured."""
        if id == self.first_compressing and self.original is None:
            self._before_compression()
        sources = {
            key: self._resolve(config.source if ref == "last" and config and config.source else ref, stage)
            for key, ref in stage.inputs().items()
            if ref != CHECKPOINT
        }
        sources.update(
            (key, self._network_behind(sources["source"]))
            for key, ref in stage.inputs().items()
            if ref == CHECKPOINT
        )
        timeout = config.timeout if config else timeout
        timeout_s = timeout.value / 1000 if timeout else None
        max_drop = config.back_off.value if config and config.back_off else None
        directory = f"{len(self.steps):02d}-{id}"
        self.steps.append(Step(id, name, stage, directory, sources, timeout_s, max_drop))
        if id == BASELINE:
            self.baseline = id
        elif stage.produces:
            self.last, self.kinds = id, stage.produces
            self.network = id if stage.produces == NETWORK else self.network
            if "onnx" in stage.produces and self.first_compressing is None and self.baseline is None:
                self.baseline = id

    def compares_networks(self, stage: Stage) -> bool:
        """Whether the stage's baseline is the network before compression, and not an exported one."""
        return self.networks and "checkpoint" in stage.accepts

    def _is_on_the_way(self, step: Step) -> bool:
        """A network that is no result: as it came, as it was trained, or before it was trained again."""
        if step.stage.produces != NETWORK:
            return False
        ids = [s.id for s in self.steps]
        first = ids.index(self.original or self.network)
        later = [s for s in self.steps if s.stage.produces == NETWORK]
        return ids.index(step.id) <= first or any(s.source == step.id for s in later)

    def _network_behind(self, source: tuple[str, ...] | Path) -> tuple[str, ...]:
        by_id = {s.id: s for s in self.steps}
        id = source[-1] if isinstance(source, tuple) and source else None
        while id is not None and by_id[id].stage.produces != NETWORK:
            id = by_id[id].source
        return (id,) if id is not None else ()

    def _before_compression(self) -> None:
        self.original = self.network
        if self.baseline is None and "onnx" in self.kinds:
            self.baseline = self.last

    def _resolve(self, ref: str, stage: Stage) -> tuple[str, ...] | Path:
        if ref == "all":
            made = [s for s in self.steps if s.stage.produces and s.id != self.baseline]
            return tuple(s.id for s in made if not self._is_on_the_way(s))
        original = self.original or self.network
        named = {
            "last": self.last,
            "original": original,
            BASELINE: original if self.compares_networks(stage) else self.baseline or self.last,
        }
        if ref in named:
            return (named[ref],) if named[ref] else ()
        if any(s.id == ref for s in self.steps):
            return (ref,)
        return Path(ref)


def _original(wanted: list[tuple[str, str, Stage, StepConfig]]) -> str | None:
    return next((id for id, _, stage, _ in wanted if stage.compresses), None)


def _model_stage(config: PipelineConfig) -> Stage:
    from deploycompress.stages.model import InitialModel

    model = config.model
    return InitialModel(
        InitialModel.Config(weights=model.weights, expect=model.expect, tolerance=model.tolerance)
    )


def _baseline(wanted: list[tuple[str, str, Stage, StepConfig]]) -> tuple[Stage, None, Quantity | None]:
    """The pipeline's own export, so that baseline and candidate differ by the compression alone, and its timeout."""
    for _, name, stage, step in wanted:
        if name == "export":
            return stage, None, step.timeout
    export = STAGES.load("export")
    default: Stage = export(export.Config())
    return default, None, None
