"""The benchmark stage: every artefact measured at the target, and judged once on the test split."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deploycompress.artifact import Artifact, write_json
from deploycompress.config.base import StrictModel
from deploycompress.config.devices import LOCAL
from deploycompress.config.quantities import Duration
from deploycompress.config.schema import COMPETITOR, Network, NetworkOrFile, TargetConfig
from deploycompress.contracts import Event, Inputs, Note, Outcome, Ref, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, Interrupted, StageFailed
from deploycompress.graph import competitors
from deploycompress.graph.settings import Setting, candidates_in, distinct, in_other_runtimes, opened_by
from deploycompress.measure.measurement import Latency, Measurement
from deploycompress.measure.plan import MODES, REHEARSED, Mode
from deploycompress.registry import FUNCTIONS, RUNTIMES

SCORES, CORRUPTED, PLACEMENT = "scores.json", "scores.corrupted.json", "placement.json"
EMIT_EVERY_S = 1.0
SPARSE = 0.3  # share of zeros from which on it is asked what they bring


class Benchmark(Stage):
    """Reads all artefacts, makes none: what it gives are measurements."""

    accepts = frozenset({"onnx", "openvino", "engine", "checkpoint"})
    produces = frozenset()
    reusable = False

    class Config(StrictModel):
        mode: Mode = "quick"
        times: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="As many blocks as the mode has")
        extend_up_to: Duration = Field(
            "10 min",
            validate_default=True,
            description="For all longer measurements that gates with `on_inconclusive: extend` ask for",
        )
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
        preprocess: str | None = Field(
            None, description="module:function, from the path of `sample` to the inputs; timed apart"
        )
        sample: Path | None = Field(None, description="A file as it arrives, for `preprocess`")
        postprocess: str | None = Field(
            None, description="module:function, of the outputs by name; timed apart"
        )
        competitors: dict[Annotated[str, Field(pattern=COMPETITOR)], NetworkOrFile] = Field(
            {}, description="What could ship instead, by name: {build, args, weights}, or an .onnx file"
        )

        @model_validator(mode="after")
        def _sample_and_preprocess(self) -> Benchmark.Config:
            if (self.preprocess is None) != (self.sample is None):
                raise ValueError("preprocess reads the file `sample`; expected both of them, or neither")
            return self

        @property
        def nominal_s(self) -> float:
            """Seconds that each artefact is measured for, in each setting."""
            return MODES[self.mode].longer(self.times).nominal_s

    def inputs(self) -> Mapping[str, Ref]:
        files = {
            f"competitors.{name}": given.weights if isinstance(given, Network) else given
            for name, given in self.config.competitors.items()
        }
        given = {n: str(file) for n, file in files.items() if file is not None and file.is_absolute()}
        return {"source": "all", "baseline": "baseline", "original": "original", **given}

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

        competitors.require_openable(self.config.competitors, context.target.runtime)
        for device, name in sorted({(s.device, s.runtime) for s in self.settings(context)}):
            missing = open_device(device, context.devices).missing(name)
            if missing:
                where = "here" if device == LOCAL else f"on {device}"
                raise EnvironmentMissing(f"benchmark: the runtime {name} cannot run {where}: {missing}")

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
            a for a in distinct((baseline, *inputs["source"])) if a.kind in opened or "runtime" in a.details
        ]
        own = {a.id for a in (*artifacts, *inputs["source"], *inputs.get("original", ()))}
        rivals, notes = competitors.make(self.config.competitors, workdir / "competitors", own, context)
        measurements: list[Measurement] = []
        settings, measuring_s = list(self.settings(context)), 0.0
        for number, setting in enumerate(settings):
            progress, began = _progress(context, number, len(settings)), time.monotonic()
            measured, left_out = self._measure(
                setting, [*artifacts, *rivals], (baseline, original), number == 0, workdir, context, progress
            )
            measuring_s += time.monotonic() - began
            measurements.extend(measured)
            notes.extend(left_out)
        placed, unknown = self._placement(settings[0], artifacts, context)
        write_json(workdir / PLACEMENT, placed)
        notes.extend(unknown)
        sparse = self._sparse(settings[0], artifacts, workdir, context)
        around, unknown = self._around(settings[0], artifacts, context)
        notes.extend(unknown)
        if not any(m.artifact in own for m in measurements):
            raise ConfigError(
                f"benchmark: there is nothing that {context.target.runtime} opens among "
                f"{[a.kind for a in artifacts]}; add an export step before it"
            )
        found, unread = judge_artifacts(
            [*artifacts, *rivals], context, self.config.corruptions, self.config.severities
        )
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
            "measuring_s": measuring_s,
            "test_samples": max((e.samples for e in evaluations.values()), default=0),
            "scores": SCORES,
            "corrupted": CORRUPTED,
            "sparse": sparse,
            "around": {name: asdict(found) for name, found in around.items()},
            "competitors": [rival.to_json(workdir) for rival in rivals],
            "placement": PLACEMENT,
            "network": _shipped(context.model.recipe) if "checkpoint" in kinds else None,
            "devices": {
                name: dict(open_device(name, context.devices).facts())
                for name in dict.fromkeys(s.device for s in settings if s.device != LOCAL)
            },
            "per_class": {id: dict(e.per_class) for id, e in evaluations.items() if e.per_class},
            "by_class": {id: e.by_class for id, e in evaluations.items() if e.by_class},
        }
        metrics = {f"{name}_ms": found.p50 for name, found in around.items()}
        return Outcome(metrics=metrics, measurements=rows, notes=(*notes, *unread), details=details)

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
        from deploycompress.measure.intervals import noise_floor
        from deploycompress.model.parity import to_numpy

        plan = REHEARSED if context.rehearsal else MODES[self.config.mode].longer(self.config.times)
        baseline = opened_by(setting.runtime, baselines)
        candidates, notes = candidates_in(setting, distinct((baseline, *artifacts)), at_target, context)
        if not candidates:
            return [], notes
        reference = next((c.id for c, a in candidates if a is baseline), None)
        others = list(in_other_runtimes(setting, [c for c, _ in candidates], baselines, context))
        candidates += others
        twins = [
            replace(c, id=f"again.{setting}")
            for c, _ in candidates
            if c.id == reference and at_target and not context.rehearsal and len(candidates) > 1
        ]
        device = open_device(setting.device, context.devices)
        feed = to_numpy(take(context.data.loader("test"), setting.batch_size))
        if setting.device != LOCAL:
            # What was built there was compared when it was, and nothing else runs it.
            portable = [c for c, a in candidates if "device" not in a.details]
            for candidate in check_on(device, portable, feed, progress):
                reason = (
                    f"its outputs on {setting.device} were not checked: {candidate.runtime} cannot run here"
                )
                notes.append(Note("warning", reason, candidate.id))
        measured = measure(
            device,
            [*twins, *(candidate for candidate, _ in candidates)],
            baseline=reference,
            references={candidate.runtime: candidate.id for candidate, _ in others},
            feed=feed,
            workdir=workdir,
            progress=progress,
            plan=plan,
            gated=at_target and not context.rehearsal,
        )
        elsewhere = {candidate.id for candidate, _ in others}
        floors = [noise_floor(again) for t in twins if (again := measured[t.id].speedup) is not None]
        return [
            replace(
                measured[c.id],
                artifact=a.id,
                at_target=at_target and c.id not in elsewhere,
                noise_floor=floors[0] if floors else None,
            )
            for c, a in candidates
        ], notes

    def _placement(
        self, setting: Setting, artifacts: Sequence[Artifact], context: RunContext
    ) -> tuple[dict[str, list[dict[str, Any]]], list[Note]]:
        """Artefact id -> where each of its operators runs at the target, where the runtime tells; else a note."""
        from deploycompress.devices.jobs import open_device
        from deploycompress.devices.placement import placements
        from deploycompress.devices.profiles import NotProfiled
        from deploycompress.graph.feeds import take
        from deploycompress.graph.layer_names import with_layers
        from deploycompress.model.parity import to_numpy

        candidates, _ = candidates_in(setting, artifacts, True, context)
        if context.rehearsal or not candidates:
            return {}, []
        feed = to_numpy(take(context.data.loader("test"), setting.batch_size))
        unknown = "where its operators run is not known: {}"  # it was measured; this only tells more of it
        try:
            device = open_device(setting.device, context.devices)
            told = placements(device, [c for c, _ in candidates], feed, _progress(context, 0, 1))
        except (EnvironmentMissing, StageFailed) as error:
            return {}, [Note("skipped", unknown.format(error), artifact.id) for _, artifact in candidates]
        found: dict[str, list[dict[str, Any]]] = {}
        notes = []
        of_nodes = None  # the last ONNX file, which what is none was made of
        for candidate, artifact in candidates:
            of_nodes = artifact.main_file if artifact.kind == "onnx" else of_nodes
            rows = told[candidate.id]
            if not isinstance(rows, EnvironmentMissing):
                found[artifact.id] = with_layers(rows, artifact, of_nodes)
            elif not isinstance(rows, NotProfiled):
                notes.append(Note("skipped", unknown.format(rows), artifact.id))
        return found, notes

    def _around(
        self, setting: Setting, artifacts: Sequence[Artifact], context: RunContext
    ) -> tuple[dict[str, Latency], list[Note]]:
        """What the user's own code takes before and after an inference, on this machine."""
        from deploycompress.devices.answers import answers
        from deploycompress.devices.jobs import open_device
        from deploycompress.graph.around import preprocessed, time_around
        from deploycompress.graph.feeds import take
        from deploycompress.model.parity import to_numpy

        names, sample = (self.config.preprocess, self.config.postprocess), self.config.sample
        if names == (None, None):
            return {}, []
        if setting.device != LOCAL:
            reason = f"preprocess and postprocess were not timed: code of yours does not travel to {setting.device}"
            return {}, [Note("skipped", reason)]
        before, after = (None if name is None else FUNCTIONS.load(name) for name in names)
        if before is not None and sample is not None:
            feed = preprocessed(before, sample, context.model)
        else:
            feed = to_numpy(take(context.data.loader("test"), setting.batch_size))
        (candidate, _), *_ = candidates_in(setting, artifacts, True, context)[0]
        outputs = next(answers(open_device(setting.device, context.devices), candidate, [feed]))
        return time_around(before, sample, after, outputs, setting.threads), []

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

        plan = REHEARSED if context.rehearsal else MODES["quick"]
        candidates, _ = candidates_in(setting, artifacts, True, context)
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
                    plan=plan,
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
