"""Runs of a sweep as processes of this machine, each in a group of its own, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from deploycompress.devices import quiet
from deploycompress.report.annotations import STEP_SUMMARY
from deploycompress.sweep.jobs import OUTPUT, Job
from deploycompress.writing import append_to, clear

GRACE_S = 6.5  # a run gives its step 5 s; a CI system gives 7.5 s in all


class Pool(Protocol):
    """Where runs are made."""

    slots: int  # how many at a time

    def start(self, job: Job) -> None: ...
    def ended(self) -> list[tuple[Job, int]]:
        """Runs that have ended since the last call, with their exit codes."""
        ...

    def stop(self, job: Job) -> None:
        """End a run now; it is not among those that ended."""
        ...

    def close(self) -> None:
        """End all that runs."""
        ...


class LocalPool:
    """``slots`` runs at a time as processes of this machine."""

    def __init__(self, slots: int, sweep_folder: Path) -> None:
        self.slots = slots
        self._environment = environment(sweep_folder, max(1, (os.cpu_count() or 1) // slots))
        self._running: dict[Job, subprocess.Popen[bytes]] = {}

    def start(self, job: Job) -> None:
        self._running[job] = started(job.folder, self._environment)

    def ended(self) -> list[tuple[Job, int]]:
        found = [(job, code) for job, p in self._running.items() if (code := p.poll()) is not None]
        for job, _ in found:
            finish([self._running.pop(job)])
        return found

    def stop(self, job: Job) -> None:
        finish([self._running.pop(job)])

    def close(self) -> None:
        finish(list(self._running.values()))
        self._running.clear()


def environment(sweep_folder: Path, threads: int) -> dict[str, str]:
    """What a run's process inherits: where the machine's quiet is kept, and its part of the cores for training."""
    given = {quiet.VARIABLE: str(sweep_folder)}
    # A job's summary has room for one run's, and many would be dropped together.
    inherited = {name: value for name, value in os.environ.items() if name != STEP_SUMMARY}
    return {"OMP_NUM_THREADS": str(threads), **inherited, **given}


def started(folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The process of the run in ``folder``; it ends when this one does, whose end of its input is then closed."""
    clear(folder / OUTPUT)
    with append_to(folder / OUTPUT) as output:
        return subprocess.Popen(
            [sys.executable, "-m", "deploycompress.commands.trial", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask them to save and leave; after the grace time, kill what is left of their groups."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
