"""Starts a step's process, listens to it, and ends it with all its children."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploycompress.contracts import Event
from deploycompress.devices import quiet
from deploycompress.engine.interrupts import Interrupts
from deploycompress.engine.worker import forked
from deploycompress.errors import BY_NAME, DeployCompressError, EnvironmentMissing, Interrupted, StageFailed

GRACE_S = 5.0  # between SIGTERM and SIGKILL; a CI system gives 7.5 s in all

SERVER_S = 120.0  # for its imports; a server that failed in them says so when it is asked
READY = "DEPLOYCOMPRESS_SERVER_READY"  # in the server's environment: see preload

PRELOADED = ["deploycompress.engine.preload"]  # modules that the server imports, in this order

_ready: Path | None = None  # is there when the server has imported everything

# Linux forks from a server that has imported torch once; elsewhere every step imports it again.
_context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def warm_up() -> None:
    """Start the fork server now, so that it imports the frameworks while the main process reads and plans.

    Raises EnvironmentMissing where its socket cannot lie in the temporary folder.
    """
    global _ready
    if sys.platform == "linux":
        _context.set_forkserver_preload(PRELOADED)
        try:
            if _ready is None:
                _ready = Path(multiprocessing.util.get_temp_dir()) / "ready"
                os.environ[READY] = str(_ready)
            multiprocessing.forkserver.ensure_running()
        except OSError as error:  # a socket's path may have 107 bytes, and 31 of them are its own
            raise EnvironmentMissing(
                f"no socket can be made in the temporary folder {tempfile.gettempdir()}: {error}; set TMPDIR to a "
                "folder that can be written to and has a short path, such as /tmp"
            ) from error


def run_worker(
    run_dir: Path,
    step_id: str,
    listen: Callable[[Event], None],
    interrupts: Interrupts,
    timeout_s: float | None,
) -> None:
    """Run the step's process to its end.

    Raises what the step raised; StageFailed when it crashed, was killed or took longer than
    ``timeout_s``; Interrupted when a signal came.
    """
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=forked, args=(str(run_dir), step_id, sender), name=step_id)
    log_start = _size(run_dir / "log.txt")
    _wait_for_server(interrupts)
    process.start()
    sender.close()
    try:
        with quiet.resting(interrupts.check):  # the step's process takes a share of its own
            try:
                error = _listen(process, receiver, step_id, listen, interrupts, timeout_s)
            finally:
                _kill_group(process)
                process.join()
    finally:
        receiver.close()
    if error is not None:
        raise error
    if process.exitcode != 0:
        raise StageFailed(f"{step_id}: {_death(process.exitcode)}{_tail(run_dir / 'log.txt', log_start)}")


def _wait_for_server(interrupts: Interrupts) -> None:
    """While it imports the frameworks, a signal ends the wait; a server in the middle of a start must not be left."""
    deadline = time.monotonic() + SERVER_S
    with interrupts.cutting():
        while _ready is not None and not _ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)


def _listen(
    process: Any,
    receiver: Any,
    step_id: str,
    listen: Callable[[Event], None],
    interrupts: Interrupts,
    timeout_s: float | None,
) -> DeployCompressError | None:
    told, deadline = step_id, None if timeout_s is None else time.monotonic() + timeout_s
    stopped: tuple[float | None, float] = (deadline, 0.0)  # the deadline, and when its clock was stopped
    error: DeployCompressError | None = None
    open_ends: list[Any] = [receiver, process.sentinel]
    if interrupts.wake is not None:
        open_ends.append(interrupts.wake)
    while True:
        if interrupts.signal_number is not None:
            _stop(process)
            raise Interrupted(interrupts.signal_number)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise StageFailed(f"{told}: not finished after {timeout_s:g} s (its `timeout`); it was ended")
        ready = multiprocessing.connection.wait(open_ends, left)
        if receiver in ready:
            try:
                message = json.loads(receiver.recv_bytes())
            except EOFError:
                open_ends.remove(receiver)
                continue
            if "waits" in message:  # for others to end: that is no time of its own
                now = time.monotonic()
                if message["waits"]:
                    stopped = (deadline, now)
                deadline = None if message["waits"] or stopped[0] is None else stopped[0] + now - stopped[1]
            elif "begins" in message:  # the rehearsal another step, which has its time here, too
                told, timeout_s = f"{step_id}: step {message['begins']}", message["timeout_s"]
                deadline = None if timeout_s is None else time.monotonic() + timeout_s
            elif "event" in message:
                listen(Event(**{**message["event"], "step": step_id}))
            else:
                error = BY_NAME[message["error"]["class"]](message["error"]["message"])
        elif process.sentinel in ready:
            return error


def _stop(process: Any) -> None:
    """Ask the step to save and leave; the caller kills what is left after the grace time."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    process.join(GRACE_S)


def _kill_group(process: Any) -> None:
    for kill in (os.killpg, os.kill):  # the second for one that has no group of its own yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if kill is os.kill and not process.is_alive():
                return
            kill(process.pid, signal.SIGKILL)


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = (
            "; the kernel does this when memory runs out" if name == "SIGKILL" else ", a crash in native code"
        )
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        stream.seek(max(start, _size(log) - 4000))
        lines = stream.read().decode(errors="replace").strip().splitlines()[-5:]
    return "; the end of its log:\n  " + "\n  ".join(lines) if lines else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
