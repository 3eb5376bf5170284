"""The benchmark stage: every artefact measured at the target, and judged once on the test split."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deploycompress.artifact import Artifact, write_json
from deploycompress.config.base import StrictModel
from deploycompress.config.devices import LOCAL
from deploycompress.config.schema import TargetConfig
from deploycompress.contracts import Event, Inputs, Note, Outcome, Ref, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, Interrupted, StageFailed
from deploycompress.measure.measurement import Measurement
from deploycompress.registry import RUNTIMES

if TYPE_CHECKING:
    from deploycompress.devices.jobs import Candidate

SCORES, CORRUPTED, PLACEMENT = "scores.json", "scores.corrupted.json", "placement.json"
EMIT_EVERY_S = 1.0
SPARSE = 0.3  # share of zeros from which on it is asked what they bring


@dataclass(frozen=True)
class Length:
    """How long each artefact is measured."""

    blocks: int
    block_ms: float
    warmup_ms: float
    least_samples: int
    enough_samples: int = 200_000  # of a block


# quick: p90 always (64 samples), p99 (662) up to about 3 ms a call. full: MLPerf's 1,024 samples and 60 s.
LENGTHS = {"quick": Length(20, 110.0, 200.0, 64, 200), "full": Length(60, 1000.0, 2000.0, 1024)}
REHEARSED = Length(2, 5.0, 5.0, 2)


@dataclass(frozen=True)
class Setting:
    """Where and how everything is run; the target, or the target with one thing changed."""

    device: str
    runtime: str
    provider: str
    threads: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.device}.{self.runtime}.{self.provider}.t{self.threads}.b{self.batch_size}"


class Benchmark(Stage):
    """Reads all artefacts, makes none: what it gives are measurements."""

    accepts = frozenset({"onnx", "openvino", "engine", "checkpoint"})
    produces = frozenset()
    reusable = False

    class Config(StrictModel):
        mode: Literal["quick", "full"] = "quick"
        runtimes: tuple[
            str, ...
        ] = ()  # besides the target's, and so on: each changes one thing of the target
        devices: tuple[str, ...] = ()
        threads: tuple[int, ...] = ()
        batch_sizes: tuple[int, ...] = ()
        corruptions: tuple[Literal["noise", "blur", "brightness", "contrast"], ...] = Field(
            (), description="Also judge on the test split so changed: the metric accuracy_noise, and so on"
        )
        severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
            (3,), min_length=1, description="Of each corruption, 1 to 5; the metric is their mean"
        )

    def inputs(self) -> Mapping[str, Ref]:
        return {"source": "all", "baseline": "baseline", "original": "original"}

    def opens(self, target: TargetConfig) -> frozenset[str]:
        """Networks only where a runtime runs them; of a runtime of the user's that is not known before the run."""
        runtimes = {target.runtime, *self.config.runtimes}
        known = [RUNTIMES.load(name).accepts for name in runtimes if name in RUNTIMES]
        networks = len(known) < len(runtimes) or any("checkpoint" in kinds for kinds in known)
        return self.accepts if networks else self.accepts - {"checkpoint"}

    def reads(self) -> frozenset[str]:
        return frozenset({"target"})

    def requires(self, context: RunContext) -> None:
        from deploycompress.devices.jobs import open_device

        for name in sorted({context.target.runtime, *self.config.runtimes}):
            missing = RUNTIMES.load(name)().missing()
            if missing:
                raise EnvironmentMissing(f"benchmark: the runtime {name} cannot run here: {missing}")
        for device, name in sorted({(s.device, s.runtime) for s in self.settings(context)}):
            missing = open_device(device, context.devices).missing(name)
            if missing:
                raise EnvironmentMissing(f"benchmark: the runtime {name} cannot run on {device}: {missing}")

    def inexact(self, context: RunContext) -> str | None:
        return "it is measured"

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.devices.jobs import open_device
        from deploycompress.graph.judging import figures_with, judge_artifacts

        baseline = inputs["baseline"][0] if inputs.get("baseline") else None
        original = next((a for a in inputs.get("original", ()) if a.kind == "checkpoint"), None)
        opened = {
            kind for setting in self.settings(context) for kind in RUNTIMES.load(setting.runtime).accepts
        }
        opened |= self.accepts - {"checkpoint"}
        artifacts = [
            a for a in _distinct((baseline, *inputs["source"])) if a.kind in opened or "runtime" in a.details
        ]
        measurements: list[Measurement] = []
        notes: list[Note] = []
        settings = list(self.settings(context))
        for number, setting in enumerate(settings):
            progress = _progress(context, number, len(settings))
            measured, left_out = self._measure(
                setting, artifacts, (baseline, original), number == 0, workdir, context, progress
            )
            measurements.extend(measured)
            notes.extend(left_out)
        placed, unknown = self._placement(settings[0], artifacts, context)
        write_json(workdir / PLACEMENT, placed)
        notes.extend(unknown)
        sparse = self._sparse(settings[0], artifacts, workdir, context)
        if not measurements:
            raise ConfigError(
                f"benchmark: there is nothing that {context.target.runtime} opens among "
                f"{[a.kind for a in artifacts]}; add an export step before it"
            )
        found, unread = judge_artifacts(artifacts, context, self.config.corruptions, self.config.severities)
        evaluations = {id: judged.clean for id, judged in found.items()}
        write_json(workdir / SCORES, {id: e.scores for id, e in evaluations.items() if e.scores is not None})
        write_json(workdir / CORRUPTED, {id: judged.corrupted_scores for id, judged in found.items()})
        rows = tuple(
            replace(m, metrics=found[m.artifact].metrics if m.artifact in found else {}) for m in measurements
        )
        kinds = {a.kind for a in artifacts}
        figures = figures_with(self.config.corruptions, context)
        details = {
            "primary": asdict(context.task.primary),
            "figures": {name: asdict(info) for name, info in figures.items()},
            "baseline": baseline.id if baseline else None,
            "mode": self.config.mode,
            "test_samples": max((e.samples for e in evaluations.values()), default=0),
            "scores": SCORES,
            "corrupted": CORRUPTED,
            "sparse": sparse,
            "placement": PLACEMENT,
            "network": _shipped(context.model.recipe) if "checkpoint" in kinds else None,
            "devices": {
                name: dict(open_device(name, context.devices).facts())
                for name in dict.fromkeys(s.device for s in settings if s.device != LOCAL)
            },
            "per_class": {id: dict(e.per_class) for id, e in evaluations.items() if e.per_class},
            "by_class": {id: e.by_class for id, e in evaluations.items() if e.by_class},
        }
        return Outcome(measurements=rows, notes=(*notes, *unread), details=details)

    def settings(self, context: RunContext) -> Iterator[Setting]:
        """The target first, then the target with one thing changed."""
        t = context.target
        target = Setting(t.device, t.runtime, t.provider, t.threads, t.batch_size)
        changed = [
            target,
            *(replace(target, runtime=runtime) for runtime in self.config.runtimes),
            *(replace(target, device=device) for device in self.config.devices),
            *(replace(target, threads=threads) for threads in self.config.threads),
            *(replace(target, batch_size=size) for size in self.config.batch_sizes),
        ]
        return iter(dict.fromkeys(changed))

    def _measure(
        self,
        setting: Setting,
        artifacts: Sequence[Artifact],
        baselines: tuple[Artifact | None, ...],
        at_target: bool,
        workdir: Path,
        context: RunContext,
        progress: Callable[[float, str], None],
    ) -> tuple[list[Measurement], list[Note]]:
        """Every artefact that runs in this setting, interleaved with the first baseline that does."""
        from deploycompress.devices.jobs import measure, open_device
        from deploycompress.graph.agreement import check_on
        from deploycompress.graph.feeds import take
        from deploycompress.model.parity import to_numpy

        length = REHEARSED if context.rehearsal else LENGTHS[self.config.mode]
        baseline = _opened_by(setting.runtime, baselines)
        candidates, notes = _candidates(setting, _distinct((baseline, *artifacts)), at_target, context)
        if not candidates:
            return [], notes
        reference = next((c.id for c, a in candidates if a is baseline), None)
        others = list(_in_other_runtimes(setting, [c for c, _ in candidates], baselines, context))
        candidates += others
        device = open_device(setting.device, context.devices)
        feed = to_numpy(take(context.data.loader("test"), setting.batch_size))
        if setting.device != LOCAL:
            for candidate in check_on(device, [c for c, _ in candidates], feed, progress):
                reason = (
                    f"its outputs on {setting.device} were not checked: {candidate.runtime} cannot run here"
                )
                notes.append(Note("warning", reason, candidate.id))
        measured = measure(
            device,
            [candidate for candidate, _ in candidates],
            baseline=reference,
            references={candidate.runtime: candidate.id for candidate, _ in others},
            feed=feed,
            workdir=workdir,
            progress=progress,
            **asdict(length),
        )
        elsewhere = {candidate.id for candidate, _ in others}
        return [
            replace(measured[c.id], artifact=a.id, at_target=at_target and c.id not in elsewhere)
            for c, a in candidates
        ], notes

    def _placement(
        self, setting: Setting, artifacts: Sequence[Artifact], context: RunContext
    ) -> tuple[dict[str, list[dict[str, Any]]], list[Note]]:
        """Artefact id -> where each of its operators runs at the target, where the runtime tells; else a note."""
        from deploycompress.devices.jobs import open_device
        from deploycompress.devices.placement import placement
        from deploycompress.graph.feeds import take
        from deploycompress.model.parity import to_numpy

        if context.rehearsal:
            return {}, []
        candidates, _ = _candidates(setting, artifacts, True, context)
        feed = to_numpy(take(context.data.loader("test"), setting.batch_size))
        found: dict[str, list[dict[str, Any]]] = {}
        notes = []
        for candidate, artifact in candidates:
            progress = _progress(context, 0, 1)
            try:
                rows = placement(open_device(setting.device, context.devices), candidate, feed, progress)
            except (EnvironmentMissing, StageFailed) as error:  # it was measured; this only tells more of it
                notes.append(Note("skipped", f"where its operators run is not known: {error}", artifact.id))
                continue
            if rows is not None:
                found[artifact.id] = rows
        return found, notes

    def _sparse(
        self, setting: Setting, artifacts: Sequence[Artifact], workdir: Path, context: RunContext
    ) -> dict[str, dict[str, float]]:
        """Artefact id -> the share of zeros in its weights, and how much faster than without them it is.

        Of ONNX files that are sparse and run in the setting; beside the same file with the zeros filled in,
        since all else that made it faster is in both.
        """
        from deploycompress.devices.jobs import measure, open_device
        from deploycompress.graph.feeds import take
        from deploycompress.graph.zeros import fill_zeros, share_of_zeros
        from deploycompress.model.parity import to_numpy

        length = REHEARSED if context.rehearsal else LENGTHS["quick"]
        candidates, _ = _candidates(setting, artifacts, True, context)
        found = {}
        for sparse, artifact in candidates:
            share = share_of_zeros(artifact.main_file) if artifact.kind == "onnx" else 0.0
            if share < SPARSE:
                continue
            with tempfile.TemporaryDirectory(dir=workdir, prefix="filled-") as folder:
                path = Path(folder) / "model.onnx"
                fill_zeros(artifact.main_file, path)
                measured = measure(
                    open_device(setting.device, context.devices),
                    [replace(sparse, id="filled", path=path), sparse],
                    baseline="filled",
                    feed=to_numpy(take(context.data.loader("test"), setting.batch_size)),
                    workdir=Path(folder),
                    progress=_progress(context, 0, 1),
                    **asdict(length),
                )
            speedup = measured[sparse.id].speedup
            assert speedup is not None
            found[artifact.id] = {"zeros": share, **asdict(speedup)}
        return found


def _shipped(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """For whoever runs a checkpoint that ships: where this machine has its files is of no use there."""

    def named(network: Mapping[str, Any]) -> dict[str, Any]:
        place, _, name = network["build"].rpartition(":")
        return {
            **network,
            "build": f"{Path(place).name}:{name}" if place.endswith(".py") else network["build"],
        }

    others = [named(other) for other in recipe["others"]]
    return {**recipe, "config": named(recipe["config"]), "others": others, "search_path": []}


def _distinct(artifacts: Sequence[Artifact | None]) -> list[Artifact]:
    """Each artefact once, in order; two steps that made the same bytes are two artefacts."""
    found: dict[tuple[str, str], Artifact] = {}
    for artifact in artifacts:
        if artifact is not None:
            found.setdefault((artifact.id, artifact.sha256), artifact)
    return list(found.values())


def _candidates(
    setting: Setting, artifacts: Sequence[Artifact], at_target: bool, context: RunContext
) -> tuple[list[tuple[Candidate, Artifact]], list[Note]]:
    """What the setting's runtime opens and, at the target, engines in the runtime that built them."""
    from deploycompress.devices.jobs import Candidate
    from deploycompress.graph.execution import fixed_batch_of, network_of
    from deploycompress.graph.feeds import fixed_batch

    found: list[tuple[Candidate, Artifact]] = []
    notes: list[Note] = []
    for number, artifact in enumerate(artifacts):
        own = artifact.details if at_target and "runtime" in artifact.details else {}
        runtime, provider = _runtime_for(artifact, setting, own)
        if runtime is None:
            continue
        fixed = artifact.details.get("batch") or fixed_batch_of(artifact.main_file)
        fixed = fixed or fixed_batch(context.model)
        if fixed not in (None, setting.batch_size):
            reason = f"not measured at batch size {setting.batch_size}: its batch is fixed at {fixed}"
            notes.append(Note("skipped", reason, artifact.id))
            continue
        id = f"{number}-{artifact.id or 'model'}.{setting}"
        threads = own.get("threads", setting.threads)
        options = {**own.get("options", {}), **network_of(artifact.kind, context.model)}
        found.append(
            (
                Candidate(id, artifact.path, runtime, provider, threads, artifact.precision, options),
                artifact,
            )
        )
    return found, notes


def _runtime_for(artifact: Artifact, setting: Setting, own: Mapping[str, Any]) -> tuple[str | None, str]:
    """The runtime that opens the artefact, with its provider; None where there is none.

    ``own``: what it was made for, which counts at the target.
    """
    if own and artifact.kind in RUNTIMES.load(own["runtime"]).accepts:
        return str(own["runtime"]), str(own.get("provider", "cuda"))
    opens = artifact.kind in RUNTIMES.load(setting.runtime).accepts
    if artifact.kind == "engine":  # of one runtime alone
        opens = artifact.details.get("runtime") == setting.runtime
    return (setting.runtime, setting.provider) if opens else (None, "")


def _in_other_runtimes(
    setting: Setting,
    candidates: Sequence[Candidate],
    baselines: Sequence[Artifact | None],
    context: RunContext,
) -> Iterator[tuple[Candidate, Artifact]]:
    """A baseline in each runtime besides the setting's that opens one: what is faster there by compression alone."""
    from deploycompress.devices.jobs import Candidate
    from deploycompress.graph.execution import fixed_batch_of, network_of

    for runtime in dict.fromkeys(c.runtime for c in candidates if c.runtime != setting.runtime):
        baseline = _opened_by(runtime, baselines)
        if baseline is not None and fixed_batch_of(baseline.main_file) in (None, setting.batch_size):
            plain = Candidate(f"baseline.{setting}.{runtime}", baseline.path, runtime, setting.provider)
            options = network_of(baseline.kind, context.model)
            yield replace(plain, threads=setting.threads, options=options), baseline


def _opened_by(runtime: str, artifacts: Sequence[Artifact | None]) -> Artifact | None:
    kinds = RUNTIMES.load(runtime).accepts
    return next((a for a in artifacts if a is not None and a.kind in kinds), None)


def _progress(context: RunContext, number: int, settings: int) -> Callable[[float, str], None]:
    """Tells at most once a second, and leaves when the run is stopped."""
    told = [0.0]

    def progress(done: float, message: str) -> None:
        if context.stopping():
            raise Interrupted(signal.SIGTERM)
        if time.monotonic() - told[0] >= EMIT_EVERY_S:
            told[0] = time.monotonic()
            context.emit(Event("progress", message, done=(number + done) / settings))

    return progress
