"""What a device keeps of jobs: it starts them, tells whether they run, ends them, and takes old ones away.

It travels as a part of the agent: the standard library alone, Python 3.8 syntax. A job is a process in a session of its
own, which holds a kernel lock for as long as it runs: what runs is known without trusting a number in a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

Request = Dict[str, Any]
Answer = Tuple[Dict[str, Any], bytes]

SHARED_LOCK = "/tmp/deploycompress.lock"
SAME_MEASUREMENT_S = 6 * 3600  # a finished job that is older is not what its controller waits for
OLD_JOB_S = 24 * 3600  # uncollected, and nobody has asked since
KEPT_BYTES = 4 << 30  # of files that were sent; the least used go first
IN_USE_S = 3600
KILLED_S = 10.0


class Refused(Exception):
    """Why a request is not done; ``kind`` is what the controller decides by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def start_job(base: Path, request: Request, data: bytes) -> Answer:
    """Start a job; one that runs, or has ended lately, is taken for this one: its controller came back."""
    with (base / "start.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        tidy(base)
        folder = folder_of(base, request)
        if runs(folder) or age_s(folder / "result.json") < SAME_MEASUREMENT_S:
            return {"attached": True}, b""
        shutil.rmtree(str(folder), ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        job = json.loads(data)
        job["lock"] = device_lock(base)
        job["files"] = {
            name: {"sha256": digest, "from": str(base / "blobs" / digest)}
            for name, digest in job["files"].items()
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        shutil.copyfile(str(base / "blobs" / job["runner"]), str(folder / "runner.py"))
        (folder / "heartbeat").touch()
        launch(folder)
    return {"attached": False}, b""


def device_lock(base: Path) -> str:
    """Of all who measure on the device, whatever their account and folder; of the folder where there is no /tmp."""
    shared = os.environ.get("DEPLOYCOMPRESS_LOCK", SHARED_LOCK)
    return shared if os.access(os.path.dirname(shared), os.W_OK) else str(base / "lock")


def launch(folder: Path) -> None:
    """The runner as a process of its own that nothing here waits for; it inherits the lock that says that it runs."""
    with (folder / "alive").open("w") as alive, (folder / "log.txt").open("wb") as log:
        fcntl.flock(alive, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-E", "runner.py", str(folder), "--alone"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=str(folder),
            start_new_session=True,
            pass_fds=(alive.fileno(),),
        )
        (folder / "pid").write_text(str(process.pid))


def poll_job(base: Path, request: Request, data: bytes) -> Answer:
    """Whether it runs, after it has ended or ``wait_s`` have gone by; waits without disturbing what is measured."""
    folder = folder_of(base, request)
    if not folder.is_dir():
        return {"state": "gone"}, b""
    (folder / "heartbeat").touch()
    running = runs(folder, request["wait_s"])
    progress = {"done": 0.0, "message": "starting"}
    with contextlib.suppress(FileNotFoundError):
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    return {"state": "running" if running else "ended", **progress}, b""


def stop_job(base: Path, request: Request, data: bytes) -> Answer:
    """End a job with all its processes, and take its files away."""
    folder = folder_of(base, request)
    if runs(folder):
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
        if runs(folder, KILLED_S):
            raise Refused("system", "a job does not end")
    shutil.rmtree(str(folder), ignore_errors=True)
    return {}, b""


def runs(folder: Path, wait_s: float = 0.0) -> bool:
    """Whether a process holds the job's lock, after waiting for it so long."""
    try:
        stream = (folder / "alive").open("r+")
    except FileNotFoundError:
        return False
    with stream, alarm(wait_s):
        try:
            # Shared: two who ask at once do not take each other for the job.
            fcntl.flock(stream, fcntl.LOCK_SH | (0 if wait_s else fcntl.LOCK_NB))
        except (BlockingIOError, TimeoutError):
            return True
        return False


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside after so many seconds; 0: never."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def folder_of(base: Path, request: Request) -> Path:
    return base / "jobs" / str(request["id"])


def tidy(base: Path) -> None:
    """Take away jobs that nobody asked for since yesterday, pieces of the same age, and files beyond the bound."""
    for folder in (base / "jobs").glob("*"):
        if age_s(folder / "heartbeat") > OLD_JOB_S and not runs(folder):
            shutil.rmtree(str(folder), ignore_errors=True)
    kept = 0
    for path in sorted((base / "blobs").glob("*"), key=age_s):
        kept += path.stat().st_size
        idle_s = age_s(path)
        if idle_s > OLD_JOB_S if path.suffix == ".part" else kept > KEPT_BYTES and idle_s > IN_USE_S:
            path.unlink()


def age_s(path: Path) -> float:
    """Since it was last written or used; without end where it is not there."""
    try:
        return abs(
            time.time() - path.stat().st_mtime
        )  # a device without a battery may have gone back in time
    except FileNotFoundError:
        return float("inf")
