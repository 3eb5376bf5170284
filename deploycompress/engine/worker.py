"""One step in a process of its own: ``python -m deploycompress.engine.worker RUN_DIR STEP``."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from deploycompress.artifact import Artifact, digest_json, read_json
from deploycompress.contracts import Event, RunContext
from deploycompress.devices import quiet
from deploycompress.engine import ranks
from deploycompress.engine.plan import Step
from deploycompress.errors import (
    BY_NAME,
    DeployCompressError,
    EnvironmentMissing,
    Interrupted,
    StageFailed,
    of_system,
)
from deploycompress.registry import add_to_path
from deploycompress.user_code import refuse_user_code
from deploycompress.writing import append_to

JOBS = ".jobs"
REHEARSAL = "rehearsal"
# What native libraries say in errors of their own.
NO_ROOM = tuple(map(os.strerror, (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)))
NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "allocate memory for",
)

Send = Callable[[Mapping[str, Any]], None]


class _Stopping:
    """Set by SIGTERM; a stage looks at it where it can leave."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        return self.signal_number is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number


def work(run_dir: Path, step_id: str, send: Send) -> int:
    """Do the step whose job lies in ``run_dir``; send progress and, at the end, what went wrong.

    Returns the exit code. The result is in the job's workdir, whole, when it is 0.
    """
    stopping = _Stopping()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run decides, and tells us by SIGTERM
    signal.signal(signal.SIGTERM, stopping.note)

    if not ranks.inside():  # one of several processes of a step works under the first one's share
        quiet.on_waiting(lambda waits: send({"waits": waits}))
        quiet.work()
    try:
        _do(run_dir, step_id, send, stopping)
    except Interrupted:
        return 128 + signal.SIGTERM
    except DeployCompressError as error:
        send({"error": {"class": _public_name(error), "message": str(error)}})
        return error.exit_code
    except BaseException as error:
        traceback.print_exc()
        known = _explain(error)
        send({"error": {"class": type(known).__name__, "message": str(known)}})
        return known.exit_code
    return 0


def _do(run_dir: Path, step_id: str, send: Send, stopping: _Stopping) -> None:
    from deploycompress.config.reader import read
    from deploycompress.engine.context import open_context
    from deploycompress.engine.plan import plan
    from deploycompress.engine.record import write_manifest
    from deploycompress.engine.rehearsal import rehearse
    from deploycompress.recovery.recipe import Launch

    def emit(event: Event) -> None:
        send({"event": asdict(event)})

    job = read_json(run_dir / JOBS / f"{step_id}.json")
    if not job.get("user_code", True):
        refuse_user_code()
    add_to_path(job["search_path"])
    config = read(run_dir / "config.yaml", load_user_code=True)
    steps = plan(config)
    if step_id == REHEARSAL:
        quiet.rehearse()
        context = open_context(config, job, rehearsal=True, emit=emit, stopping=stopping)
        rehearse(
            steps,
            Path(job["workdir"]),
            context,
            lambda step: send({"begins": step.id, "timeout_s": step.timeout_s}),
        )
        return
    step = next(s for s in steps if s.id == job.get("planned", step_id))
    if "planned" in job:  # a smaller round in the place of one that was undone
        stage = type(step.stage)
        step = replace(step, id=step_id, stage=stage(stage.Config.model_validate(job["config"])))
    launch = getattr(step.stage.config, "launch", None)
    if isinstance(launch, Launch) and launch.total > 1 and not ranks.inside():
        ranks.run(run_dir, step_id, digest_json(job["key"]), launch, send)
        return
    context = open_context(config, job, rehearsal=False, emit=emit, stopping=stopping)
    inputs = {
        name: tuple(Artifact.from_json(entry, run_dir) for entry in entries)
        for name, entries in job["inputs"].items()
    }
    started = time.monotonic() - quiet.waited_s()  # waiting for others is no part of what the step takes
    with ranks.workdir(Path(job["workdir"])) as workdir:
        outcome = step.stage.run(inputs, workdir, context)
        if stopping():
            raise Interrupted(signal.SIGTERM)
        for note in outcome.notes:
            if note.kind == "warning":
                emit(Event("warning", f"{note.subject}: {note.message}" if note.subject else note.message))
        parity = step.stage.ensures(inputs, outcome, context)
        write_manifest(
            workdir,
            step,
            job["key"],
            inputs,
            outcome,
            parity,
            time.monotonic() - quiet.waited_s() - started,
            _inexact(step, context),
        )


def _inexact(step: Step, context: RunContext) -> str | None:
    """Why the step, made again, may not be the same bit by bit."""
    import torch

    return step.stage.inexact(context) or (
        "a GPU was there to compute on" if torch.cuda.is_available() else None
    )


def _public_name(error: DeployCompressError) -> str:
    """The class that the run knows: a subclass is its maker's own affair."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in BY_NAME)


def _explain(error: BaseException) -> DeployCompressError:
    """The exit code and the sentence for what a stage did not expect."""
    refused = of_system(error) if isinstance(error, OSError) else None
    if refused is not None:
        return refused
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY):
        return StageFailed("out of memory; use a smaller batch_size or a machine with more memory")
    text = said.strip().splitlines()
    first = text[0] if text else "no message"
    if any(words in said for words in NO_ROOM):
        return EnvironmentMissing(f"no room to write: {first}; free some space")
    return StageFailed(f"unexpected {type(error).__name__}: {first} (the whole traceback is in log.txt)")


# ---------------------------------------------------------------- being a process


def forked(run_dir: str, step_id: str, connection: Any) -> None:
    """The entry of a worker that the fork server made; ``connection`` takes one JSON line a message."""
    import multiprocessing.connection

    # What the user's code starts, it starts as it would anywhere; and a semaphore of tqdm's is no leak.
    multiprocessing.set_start_method(None, force=True)
    parent = multiprocessing.parent_process()
    assert parent is not None
    _settle(Path(run_dir), lambda: multiprocessing.connection.wait([parent.sentinel]))
    code = work(Path(run_dir), step_id, lambda message: connection.send_bytes(json.dumps(message).encode()))
    _leave(code)


def main(arguments: list[str]) -> None:
    """The same work, started by hand or by another launcher: JSON lines go to standard output.

    As one of several processes that do a step together, it reports to the one that started it, and ends with it.
    """
    run_dir, step_id = Path(arguments[0]).resolve(), arguments[1]
    if ranks.inside():
        _settle(run_dir, ranks.wait_for_parent)
        _leave(work(run_dir, step_id, ranks.sender()))
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    _settle(run_dir, None)
    _leave(work(run_dir, step_id, lambda message: print(json.dumps(message), file=lines)))


def _settle(run_dir: Path, wait_for_parent: Callable[[], Any] | None) -> None:
    """A process group of our own, all output into the run's log, and an end when the run ends."""
    if os.getpgrp() != os.getpid():
        os.setsid()
    with append_to(run_dir / "log.txt") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if wait_for_parent is None:
        return
    if sys.platform == "linux":
        # The kernel's own word, in case native code keeps the watching thread from running.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        wait_for_parent()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _leave(code: int) -> None:
    """End now: destructors of native libraries have nothing left to say, and some of them crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
