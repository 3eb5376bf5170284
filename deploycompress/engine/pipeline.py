"""``run``: takes a pipeline.yaml through its steps, gates and report."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from deploycompress.artifact import (
    MANIFEST,
    Artifact,
    copy_folder,
    digest_json,
    publish,
    read_json,
    remove,
    write_json,
    write_text,
)
from deploycompress.config.device_file import FILE, dump_devices
from deploycompress.config.schema import PipelineConfig
from deploycompress.contracts import Event, MetricInfo
from deploycompress.devices import quiet
from deploycompress.engine import directory, extension, rounds
from deploycompress.engine.context import asking_context
from deploycompress.engine.explaining import note_why
from deploycompress.engine.interrupts import Interrupts, catch
from deploycompress.engine.keys import rehearsal_fact, step_key
from deploycompress.engine.launch import run_worker, warm_up
from deploycompress.engine.locks import lock
from deploycompress.engine.plan import MODEL, Step, plan
from deploycompress.engine.record import StepRecord, error_record, read_artifacts, sign
from deploycompress.engine.rehearsal import artifacts_for
from deploycompress.engine.store import FileStore, default_root, unlike
from deploycompress.engine.worker import JOBS, REHEARSAL
from deploycompress.errors import ConfigError, DeployCompressError, of_system
from deploycompress.registry import add_to_path
from deploycompress.user_code import user_code_is_refused
from deploycompress.writing import clear, move, sweep

WAITING = "another run is making this step; waiting for it"
LOCK_WAIT_S = 10.0  # a killed run's workers are gone after one


class Listener(Protocol):
    """Whoever shows the run to a person."""

    def planned(self, run_dir: Path, steps: Sequence[Step]) -> None: ...
    def joined(self, step: Step, planned: Step) -> None: ...  # in the place of a planned one
    def started(self, step_id: str) -> None: ...
    def event(self, event: Event) -> None: ...
    def finished(self, record: StepRecord) -> None: ...


def run(
    path: Path,
    listener: Listener,
    *,
    overrides: Sequence[str] = (),
    devices: Path | None = None,
    out: Path | None = None,
    store: Path | None = None,
    rehearsal: bool = True,
    command: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Run ``path`` and return the report, whose ``exit_code`` is the run's.

    ``devices``: the file of devices, where it is not devices.yaml beside ``path``.
    Raises ConfigError and EnvironmentMissing for what is wrong before the first step, Interrupted
    after a signal. A step that fails is in the report, not raised.
    """
    from deploycompress.config.reader import read, search_path

    places = [] if user_code_is_refused() else [str(p) for p in search_path(path)]
    add_to_path(places)
    config = read(path, overrides, devices=devices, load_user_code=True)
    warm_up()
    run_dir = directory.own(out, config.name)
    with ExitStack() as stack:
        interrupts = stack.enter_context(catch())
        with interrupts.cutting():
            stack.enter_context(lock(run_dir / directory.LOCK, wait_s=LOCK_WAIT_S))
            kept = FileStore(store or default_root(), lambda text: listener.event(Event("warning", text)))
            stack.enter_context(kept.used())
        state = _Run(config, run_dir, kept, listener, interrupts)
        state.begin(places, command)
        state.steps_in_order(rehearsal)
        return state.end()


class _Run:
    """One run: what was planned, what is done, and how it went."""

    def __init__(
        self,
        config: PipelineConfig,
        run_dir: Path,
        store: FileStore,
        listener: Listener,
        interrupts: Interrupts,
    ) -> None:
        self.config, self.run_dir, self.store = config, run_dir, store
        self.listener, self.interrupts = listener, interrupts
        self.steps = plan(config)
        self.context = asking_context(config, store)
        self.records = {step.id: StepRecord(step.id, step.stage_name, step.directory) for step in self.steps}
        self.made: dict[str, tuple[Artifact, ...]] = {}
        self.digests: Mapping[str, str] = {}
        self.primary: MetricInfo | None = None
        self.rehearsal: dict[str, Any] = {"state": "skipped", "seconds": 0.0}
        self.failure: DeployCompressError | None = None
        self.started = datetime.now(UTC)
        self.clock = time.monotonic()

    # ------------------------------------------------------------ beginning and end

    def begin(self, search_path: list[str], command: Sequence[str]) -> None:
        """Ask every step what it needs, then make the run directory ready."""
        from deploycompress.config.reader import dump

        self.search_path, self.command = search_path, list(command)
        for step in self.steps:
            step.stage.requires(self.context)
        sweep(self.run_dir)
        _keep_history(self.run_dir)
        planned = {step.directory for step in self.steps}
        for folder in self.run_dir.glob("[0-9][0-9]-*"):
            if folder.name not in planned:
                remove(folder)
        write_text(self.run_dir / "log.txt", "")
        write_text(self.run_dir / "config.yaml", dump(self.config))
        if self.config.devices:  # beside it, as it was beside the pipeline: the steps read both
            write_text(self.run_dir / FILE, dump_devices(self.config.devices))
        else:
            clear(self.run_dir / FILE)
        self.controller = _controller(self.run_dir / JOBS / "controller")
        self.listener.planned(self.run_dir, self.steps)

    def steps_in_order(self, rehearsal: bool) -> None:
        """Every step, until one fails; the failure is kept for the report."""
        try:
            for part in rounds.parts(self.steps):
                if isinstance(part, rounds.Repeat):
                    assert self.primary is not None
                    rounds.make(part, self.primary, self)
                    continue
                self._step(part)
                if part.id == MODEL and rehearsal:
                    self._rehearse()
            extension.extend(self.steps, self.config.gates, self)
        except DeployCompressError as error:
            self.failure = error
        finally:
            self._record()
        self.interrupts.check()

    def end(self) -> Mapping[str, Any]:
        """Gates, report and what ships, from the manifests; also after a step has failed."""
        from deploycompress.report.build import build
        from deploycompress.report.provenance import run_manifest
        from deploycompress.report.render import append_to_job_summary, render
        from deploycompress.report.shipping import ship

        report = build(self.config, self.run_dir)
        self.interrupts.check()
        write_json(self.run_dir / "report.json", report)
        ship(report, self.run_dir)
        self.interrupts.check()
        render(report, self.run_dir)
        append_to_job_summary(self.run_dir)
        write_json(self.run_dir / MANIFEST, run_manifest(report, self.run_dir))
        self.interrupts.check()
        return report

    # ------------------------------------------------------------ rounds that may be undone

    def attempt(self, step: Step, planned: Step) -> None:
        """One step of a round, or of a smaller one in its place; see ``rounds.Runner``."""
        if step.id not in self.records:
            record = StepRecord(step.id, step.stage_name, step.directory)
            self.records = _before(self.records, self._next_round(planned), record)
            self.listener.joined(step, planned)
        self._step(step, None if step is planned else planned.id)
        self.made[planned.id] = self.made[step.id]

    def undo(self, attempt: rounds.Round, planned: rounds.Round, reason: str) -> None:
        for step in attempt:
            self.records[step.id] = replace(self.records[step.id], undone=reason)
        self.listener.event(Event("decision", reason, step=attempt[-1].id))

    def settle(self, planned: rounds.Round, good: rounds.Round | None, source: str | None) -> None:
        for number, step in enumerate(planned):
            if self.records[step.id].state == "not_run":
                del self.records[step.id]
            self.made[step.id] = self.made[good[number].id if good is not None else str(source)]

    def validated(self, step_id: str | None, or_before: bool) -> float | None:
        sources = {step.id: step.source for step in self.steps}
        while step_id is not None and self.primary is not None:
            metrics = read_json(self.run_dir / self.records[step_id].directory / MANIFEST)["metrics"]
            if f"val_{self.primary.name}" in metrics:
                return float(metrics[f"val_{self.primary.name}"])
            step_id = sources.get(step_id) if or_before else None
        return None

    def _next_round(self, planned: Step) -> str | None:
        """The first planned step after the round of ``planned``."""
        number = planned.id.rpartition("@")[2]
        later = [step.id for step in self.steps[self.steps.index(planned) :]]
        return next((id for id in later if id.rpartition("@")[2] != number), None)

    # ------------------------------------------------------------ gates that ask for a longer measurement

    def judged(self) -> Sequence[Mapping[str, Any]]:
        from deploycompress.report.build import build

        report = build(self.config, self.run_dir)
        gates: Sequence[Mapping[str, Any]] = report["gates"]
        return [] if any(row["emulated"] for row in report["measurements"]) else gates

    def seconds(self, step_id: str) -> tuple[float, float]:
        manifest = read_json(self.run_dir / self.records[step_id].directory / MANIFEST)
        return manifest["seconds"], manifest["details"]["measuring_s"]

    def measure_again(self, step: Step) -> None:
        self._step(step, step.id)

    def tell(self, event: Event) -> None:
        self.listener.event(event)

    # ------------------------------------------------------------ steps

    def _step(self, step: Step, planned: str | None = None) -> None:
        """Reuse it or make it; ``planned``: the id of the planned step in whose place it stands."""
        self.interrupts.check()
        started = time.monotonic()
        self.listener.started(step.id)
        try:
            reused = self._reuse_or_make(step, planned)
        except (DeployCompressError, OSError) as problem:
            error = of_system(problem) if isinstance(problem, OSError) else problem
            if error is None:
                raise
            seconds = time.monotonic() - started
            self._finish(step, state="failed", seconds=seconds, error=error_record(error))
            raise error from problem
        folder = self.run_dir / step.directory
        sign(folder, step, reused=reused)
        self.made[step.id] = read_artifacts(folder) or (self.made[step.source] if step.source else ())
        if step.id == MODEL:
            details = read_json(folder / MANIFEST)["details"]
            self.digests, self.primary = details["digests"], MetricInfo(**details["primary"])
        self._finish(step, state="done", seconds=time.monotonic() - started, reused=reused)

    def _reuse_or_make(self, step: Step, planned: str | None) -> bool:
        """Put the step's folder into the run directory; True when it was in the store already."""
        inputs = {name: artifacts_for(step, name, self.made) for name in step.sources}
        for name, given in inputs.items():
            if not given and step.sources[name]:
                raise ConfigError(
                    f"{step.id}: its input {name!r} ({step.sources[name]}) holds nothing it accepts"
                )
        key = step_key(step, self.config, inputs, self.digests, self.context)
        destination = self.run_dir / step.directory
        if step.id == MODEL or not step.stage.reusable:
            with self.store.workdir() as workdir:
                self._work(step, planned, key, inputs, workdir)
                copy_folder(workdir, destination)
            return False
        with ExitStack() as stack:
            with self.interrupts.cutting(), quiet.resting(self.interrupts.check):
                stack.enter_context(self.store.lock_step(key, lambda: self._say(step, WAITING)))
            damage: list[str] = []
            found = self.store.find(key, damage.append)
            for reason in damage:
                self._say(step, f"stored result set aside: {reason}")
            if found is None:
                note_why(self.run_dir, step, key, damage)
                with self.store.workdir() as workdir:
                    self._work(step, planned, key, inputs, workdir)
                    publish(workdir, self.store.step(key))
            self.store.drop_checkpoints(digest_json(key))
            stored = found or self.store.step(key)
            if _same(stored, destination):
                write_json(destination / MANIFEST, read_json(stored / MANIFEST))  # what it says may differ
            else:
                copy_folder(stored, destination)
        return found is not None

    def _work(
        self,
        step: Step,
        planned: str | None,
        key: Mapping[str, Any],
        inputs: Mapping[str, tuple[Artifact, ...]],
        workdir: Path,
    ) -> None:
        given = {name: [a.to_json(self.run_dir) for a in artifacts] for name, artifacts in inputs.items()}
        config = step.stage.config.model_dump(mode="json", by_alias=True)
        place = {} if planned is None else {"planned": planned, "config": config}
        self._job(step.id, workdir, key=key, inputs=given, **place)
        run_worker(self.run_dir, step.id, self.listener.event, self.interrupts, step.timeout_s)

    def _rehearse(self) -> None:
        fact = rehearsal_fact(self.config, self.steps, self.digests)
        if self.store.knows(fact):
            self.rehearsal = {"state": "known", "seconds": 0.0}
            return
        started = time.monotonic()
        self.listener.started(REHEARSAL)
        record = StepRecord(REHEARSAL, REHEARSAL, "", state="done")
        try:
            with self.store.workdir() as workdir:
                self._job(REHEARSAL, workdir)
                run_worker(self.run_dir, REHEARSAL, self.listener.event, self.interrupts, None)
            self.store.learn(fact)
        except DeployCompressError as error:
            record = replace(record, state="failed", error=error_record(error))
            raise
        finally:
            seconds = round(time.monotonic() - started, 3)
            self.rehearsal = {"state": "passed" if record.state == "done" else "failed", "seconds": seconds}
            self.listener.finished(replace(record, seconds=seconds))

    # ------------------------------------------------------------ records

    def _job(self, step_id: str, workdir: Path, **more: Any) -> None:
        job = {
            "workdir": str(workdir),
            "store": str(self.store.root),
            "search_path": self.search_path,
            "controller": self.controller,
            "user_code": not user_code_is_refused(),  # the fork server may be older than the answer
            **more,
        }
        write_json(self.run_dir / JOBS / f"{step_id}.json", job)

    def _finish(self, step: Step, **changes: Any) -> None:
        changes["seconds"] = round(changes["seconds"], 3)
        self.records[step.id] = replace(self.records[step.id], **changes)
        self.listener.finished(self.records[step.id])
        self._record()

    def _record(self) -> None:
        document = {
            "schema": 1,
            "name": self.config.name,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.clock, 3),
            "command": self.command,
            "steps": [record.to_json() for record in self.records.values()],
            "rehearsal": self.rehearsal,
            "error": None if self.failure is None else error_record(self.failure),
        }
        write_json(self.run_dir / "run.json", document)

    def _say(self, step: Step, message: str) -> None:
        self.listener.event(Event("warning", message, step=step.id))


def _controller(path: Path) -> str:
    """Whose jobs a device runs: made once for a run directory, so that a killed run finds them again."""
    if not path.is_file():
        write_text(path, secrets.token_hex(16))
    return path.read_text(encoding="utf-8")


def _keep_history(run_dir: Path) -> None:
    """The last run's report moves to history/, named by when that run began."""
    report = run_dir / "report.json"
    if not report.exists():
        return
    try:
        began = str(read_json(run_dir / "run.json")["started"]).replace(":", "")
    except (OSError, ValueError, KeyError):
        began = "unknown"
    move(report, run_dir / "history" / f"{began}.report.json")


def _before(
    records: Mapping[str, StepRecord], next_id: str | None, record: StepRecord
) -> dict[str, StepRecord]:
    """The records with another one, before that of ``next_id``; at the end where there is none."""
    order = list(records)
    order.insert(order.index(next_id) if next_id is not None else len(order), record.id)
    return {id: records.get(id, record) for id in order}


def _same(stored: Path, copy: Path) -> bool:
    """Whether the files of ``copy`` in the run directory are the stored step's: then none is copied."""
    return (copy / MANIFEST).is_file() and unlike(copy, read_json(stored / MANIFEST), complete=True) is None
