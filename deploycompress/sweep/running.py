"""``sweep``: takes a sweep.yaml through its trials, and ends with a report."""

from __future__ import annotations

import multiprocessing.connection
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploycompress.artifact import read_json, write_json, write_text
from deploycompress.config.files import search_path
from deploycompress.config.reader import dump
from deploycompress.devices import quiet
from deploycompress.engine.interrupts import Interrupts, catch
from deploycompress.engine.locks import lock
from deploycompress.engine.pipeline import LOCK_WAIT_S
from deploycompress.engine.store import default_root
from deploycompress.errors import ConfigError
from deploycompress.report.figures import duration, figure
from deploycompress.sweep import jobs, sharing
from deploycompress.sweep.document import build
from deploycompress.sweep.jobs import Job
from deploycompress.sweep.page import render
from deploycompress.sweep.pool import LocalPool, Pool
from deploycompress.sweep.reader import Sweep, read
from deploycompress.sweep.study import Study, Trial, open_storage

LOOK_S = 0.3  # between two looks at what has ended and what was told
MOST_FAILURES = 3  # where the first ones all fail, the others would too
RECORD = "record.json"  # of a competitor, which is in no study

Say = Callable[[str], None]


def sweep(
    path: Path,
    say: Say,
    *,
    workers: int | None = None,
    ray: str | None = None,
    devices: Path | None = None,
    out: Path | None = None,
    store: Path | None = None,
    command: str = "",
) -> Mapping[str, Any]:
    """Run the sweep at ``path``; its report, whose ``exit_code`` is the sweep's.

    Raises ConfigError and EnvironmentMissing for what is wrong before the first trial, Interrupted after a signal; the
    same call then goes on.
    """
    plan = read(path, devices)
    folder = (out or Path("runs") / plan.config.name).absolute()
    kept = store or default_root()
    with ExitStack() as stack:
        stack.enter_context(lock(folder / ".lock", wait_s=LOCK_WAIT_S))
        interrupts = stack.enter_context(catch())
        stack.enter_context(quiet.sweeping(folder))
        pool = _pool(plan, folder, kept, workers, ray)
        stack.callback(pool.close)
        study = Study(plan, open_storage(plan, folder), _owner(folder), pool.slots)
        places = [str(place) for place in search_path(plan.base)]
        state = _Running(plan, folder, kept, study, pool, interrupts, say, places)
        state.competitors()
        state.trials()
        pool.close()
        interrupts.check()
        return _end(state, command)


def _pool(plan: Sweep, folder: Path, store: Path, workers: int | None, ray: str | None) -> Pool:
    """Where the trials run, after it was seen that they can share the store and the folder there."""
    if ray is not None:
        from deploycompress.sweep.ray_pool import RayPool

        return RayPool(ray, plan.config.resources, workers, folder, store)
    for place in (store, folder):
        with sharing.probed(place):
            pass
    return LocalPool(workers or 1, folder)


def _owner(folder: Path) -> str:
    """Which sweep folder a trial in a shared database belongs to."""
    path = folder / "owner"
    if not path.is_file():
        write_text(path, secrets.token_hex(16))
    return path.read_text(encoding="utf-8")


@dataclass
class _Running:
    """A sweep under way."""

    plan: Sweep
    folder: Path
    store: Path
    study: Study
    pool: Pool
    interrupts: Interrupts
    say: Say
    search_path: list[str]
    running: dict[Job, float] = field(default_factory=dict)  # since when
    failures: int = 0  # before anything came to its end
    finished: int = 0
    began: float = field(default_factory=time.monotonic)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def seconds(self) -> float:
        return self.before_s + time.monotonic() - self.began

    def __post_init__(self) -> None:
        self.before_s = self.study.spent_s

    # ------------------------------------------------------------ what runs

    def competitors(self) -> None:
        """The models that the trials are compared with; one that was measured already is left as it is."""
        waiting = []
        for one in self.plan.config.competitors:
            job = Job(self.folder / "competitors" / one.name, competitor=one.name)
            name = f"{self.plan.config.name}-{one.name}"
            config = jobs.competing(self.plan.base_config, one, name)
            if _was_made(job.folder, dump(config)):
                continue
            jobs.prepare(job, config, self.search_path, self.store, rehearsal=True)
            waiting.append(job)
        self._all(lambda: waiting.pop(0) if waiting else None)

    def trials(self) -> None:
        """What was under way when this sweep was ended, then what the study asks for, within the budget."""
        unfinished = self.study.unfinished()
        if unfinished or self.study.count():
            self.say(f"going on: {self.study.count()} trials were begun, {len(unfinished)} of them not ended")

        def following() -> Job | None:
            while (trial := unfinished.pop(0) if unfinished else self._asked()) is not None:
                job = self._prepared(trial)
                if job is not None:
                    return job
            return None

        self._all(following)

    def _asked(self) -> Trial | None:
        if self.failures >= MOST_FAILURES and not self.finished:
            return None
        budget = self.plan.config.budget
        if budget is not None:
            spent = self.study.count() if budget.dimension == "trials" else 1000 * self.seconds
            if spent >= budget.value:
                return None
        quiet.work(self.interrupts.check)  # a search computes, and somebody may be measuring
        try:
            return self.study.ask()
        finally:
            quiet.rest()

    def _prepared(self, trial: Trial) -> Job | None:
        job = Job(self.folder / "trials" / str(trial.number), trial)
        try:
            config = self.plan.pipeline(trial.values, [f"name={self.plan.config.name}-{trial.number}"])
        except ConfigError as error:
            self._note(job, jobs.refused(job, error))
            return None
        # The first one tries the chain with untrained weights; those after it differ in a value or two.
        jobs.prepare(job, config, self.search_path, self.store, rehearsal=trial.number == 0)
        return job

    def _all(self, following: Callable[[], Job | None]) -> None:
        """Start what ``following`` gives, as many at a time as there are places, until it gives none and all have ended."""
        more = True
        while more or self.running:
            while more and len(self.running) < self.pool.slots:
                self.interrupts.check()
                job = following()
                more = job is not None
                if job is not None:
                    self.running[job] = time.monotonic()
                    self.pool.start(job)
                    self.say(f"{job.name}: started{_told(job)}")
            for job, code in self.pool.ended():
                self._ended(job, code)
            self._prune()
            self.interrupts.check()
            if self.running:
                wake = [] if self.interrupts.wake is None else [self.interrupts.wake]
                multiprocessing.connection.wait(wake, LOOK_S) if wake else time.sleep(LOOK_S)

    # ------------------------------------------------------------ what came of it

    def _ended(self, job: Job, code: int) -> None:
        self.interrupts.check()  # those that were ended with us are run again
        seconds = time.monotonic() - self.running.pop(job)
        self._note(job, jobs.outcome(job, code, self.plan.objectives, seconds))

    def _note(self, job: Job, record: dict[str, Any]) -> None:
        complete = record["state"] == "complete"
        if job.trial is None:
            write_json(job.folder / RECORD, record)
        elif complete:
            values = [record["objectives"][o.name]["value"] for o in self.plan.objectives]
            self.study.complete(job.trial, record, values)
        elif record["state"] == "pruned":
            self.study.pruned(job.trial, record)
        else:
            self.study.failed(job.trial, record)
        self.finished += record["state"] != "failed" and job.trial is not None
        self.failures += record["state"] == "failed" and job.trial is not None
        self.study.spend(self.seconds)
        self.say(f"{job.name}: {self._words(record)}")

    def _words(self, record: Mapping[str, Any]) -> str:
        took = duration(record["seconds"])
        if record["state"] != "complete":
            return f"{record['state']} after {took}: {record['error'].splitlines()[0]}"
        told = [
            f"{o.name} {figure(record['objectives'][o.name]['value'], o.unit)}" for o in self.plan.objectives
        ]
        reused = f", {len(record['reused'])} steps reused" if record["reused"] else ""
        return f"{record['verdict']}, {', '.join(told)} ({took}{reused})"

    def _prune(self) -> None:
        rule = self.plan.pruning
        if rule is None:
            return
        for job in list(self.running):
            seen = jobs.seen(job.folder, str(rule.step)) if job.trial is not None else []
            if job.trial is None or not self.study.hopeless(job.trial, self.plan.primary, seen):
                continue
            self.pool.stop(job)
            seconds = time.monotonic() - self.running.pop(job)
            epoch, value = seen[-1]
            metric = f"{self.plan.primary.name} {figure(value, self.plan.primary.unit)}"
            message = f"hopeless: {metric} after {epoch} epochs of {rule.step}"
            self._note(job, jobs.pruned(job, message, seconds))


def _end(state: _Running, command: str) -> dict[str, Any]:
    folder = state.folder
    competitors = [
        read_json(path)
        for one in state.plan.config.competitors
        if (path := folder / "competitors" / one.name / RECORD).is_file()
    ]
    report = build(state.plan, state.study, competitors, state.seconds, state.started, command)
    best = folder / jobs.PIPELINE
    if report["best"] is None:
        best.unlink(missing_ok=True)
    else:
        (values,) = (t["values"] for t in report["trials"] if t["name"] == report["best"])
        config = state.plan.pipeline(values, [f"name={state.plan.config.name}-best"])
        write_text(best, jobs.with_head(config, report["best"], state.search_path))
    write_json(folder / "report.json", report)
    render(report, folder)
    return report


def _was_made(folder: Path, text: str) -> bool:
    """Whether the run of this pipeline in ``folder`` came to its end."""
    if not (folder / RECORD).is_file() or not (folder / jobs.PIPELINE).is_file():
        return False
    same = (folder / jobs.PIPELINE).read_text(encoding="utf-8") == text
    return same and read_json(folder / RECORD)["state"] == "complete"


def _told(job: Job) -> str:
    values = {} if job.trial is None else job.trial.values
    return "".join(f", {path}={text}" for path, text in values.items()).replace(",", " with", 1)
