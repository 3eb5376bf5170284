"""A sweep's runs under way: what is started, ended as hopeless, and noted."""

from __future__ import annotations

import multiprocessing.connection
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploycompress.artifact import read_json, write_json
from deploycompress.config.reader import dump
from deploycompress.devices import quiet
from deploycompress.engine.interrupts import Interrupts
from deploycompress.errors import ConfigError
from deploycompress.report.figures import duration, figure
from deploycompress.sweep import jobs
from deploycompress.sweep.jobs import Job
from deploycompress.sweep.plan import Sweep
from deploycompress.sweep.pool import Pool
from deploycompress.sweep.study import Study, Trial

LOOK_S = 0.3  # between two looks at what has ended and what was told
MOST_FAILURES = 3  # where the first ones all fail, the others would too
RECORD = "record.json"  # of a competitor, which is in no study

Say = Callable[[str], None]


@dataclass
class Trials:
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

    def all(self) -> None:
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


def _was_made(folder: Path, text: str) -> bool:
    """Whether the run of this pipeline in ``folder`` came to its end."""
    if not (folder / RECORD).is_file() or not (folder / jobs.PIPELINE).is_file():
        return False
    same = (folder / jobs.PIPELINE).read_text(encoding="utf-8") == text
    return same and read_json(folder / RECORD)["state"] == "complete"


def _told(job: Job) -> str:
    values = {} if job.trial is None else job.trial.values
    return "".join(f", {path}={text}" for path, text in values.items()).replace(",", " with", 1)
