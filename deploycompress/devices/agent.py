"""What a device does for its controller: keeps files by their digest and jobs by their id, one request a process.

It travels with every request, joined to the machine's fingerprint: the standard library alone, Python 3.8 syntax.
Every operation may be asked for again when its answer was lost. A job is a process of its own, in a session of its
own, which holds a kernel lock for as long as it runs: what runs is known without trusting a number in a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import site
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

from deploycompress.measure.environment import LIBRARIES, machine, versions

Request = Dict[str, Any]
Answer = Tuple[Dict[str, Any], bytes]

SAME_MEASUREMENT_S = 6 * 3600  # a finished job that is older is not what its controller waits for
OLD_JOB_S = 24 * 3600  # uncollected, and nobody has asked since
KEPT_BYTES = 4 << 30  # of files that were sent; the least used go first
IN_USE_S = 3600
KILLED_S = 10.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class Refused(Exception):
    """Why a request is not done; ``kind`` is what the controller decides by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main() -> None:
    """Read one request, do it, and answer between two marks: what a shell's profile prints is not an answer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stream = sys.stdin.buffer
    request = json.loads(stream.readline())
    data = stream.read(request["bytes"])
    if len(data) != request["bytes"]:
        sys.exit("the request was cut off")
    answer, found = attempt_request(request, data)
    head = json.dumps({**answer, "bytes": len(found)}).encode()
    mark = request["mark"].encode()
    sys.stdout.buffer.write(b"\n%s %d\n%s%s\n%s\n" % (mark, len(head), head, found, mark))
    sys.stdout.buffer.flush()


def attempt_request(request: Request, data: bytes) -> Answer:
    base = os.path.expanduser(request["folder"])
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        return OPERATIONS[request["do"]](Path(base), request, data)
    except Refused as refused:
        return {"error": {"kind": refused.kind, "message": str(refused)}}, b""
    except OSError as error:
        kind = "full" if error.errno in FULL else "closed" if error.errno in CLOSED else "system"
        message = "{}: {}".format(error.filename or base, error.strerror)
        return {"error": {"kind": kind, "message": message}}, b""


# ---------------------------------------------------------------- the machine


def tell_facts(base: Path, request: Request, data: bytes) -> Answer:
    sys.path.append(site.getusersitepackages())
    python = platform.python_version()
    return {"facts": {**machine(), "python": python, "libraries": versions(LIBRARIES)}}, b""


def try_imports(base: Path, request: Request, data: bytes) -> Answer:
    """Import libraries in a process of its own, since one that was built for another processor may crash."""
    code = "import " + ", ".join(request["libraries"])
    try:
        done = subprocess.run(
            [sys.executable, "-E", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=str(base),
            timeout=request["timeout_s"],
        )
    except subprocess.TimeoutExpired:
        return {"code": None, "said": ""}, b""
    return {"code": done.returncode, "said": done.stderr.decode(errors="replace").strip()[-2000:]}, b""


# ---------------------------------------------------------------- files


def have_files(base: Path, request: Request, data: bytes) -> Answer:
    """Which of the digests are not here, or no longer whole; those that are count as used."""
    absent = []
    for digest in request["digests"]:
        place = base / "blobs" / digest
        if place.is_file() and digest_of(place) == digest:
            os.utime(str(place))
        else:
            with contextlib.suppress(FileNotFoundError):
                place.unlink()
            absent.append(digest)
    return {"absent": absent}, b""


def put_piece(base: Path, request: Request, data: bytes) -> Answer:
    """Append a piece at ``offset``; one that is here already is left out. ``size``: what is here now."""
    place = base / "blobs" / request["digest"]
    if place.is_file():
        return {"size": request["of"], "whole": True}, b""
    place.parent.mkdir(mode=0o700, exist_ok=True)
    part = Path("{}.{}.part".format(place, request["sender"]))
    with part.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # an earlier try may still be at it
        if stream.tell() == request["offset"]:
            stream.write(data)
            stream.flush()
        size = stream.tell()
        if size >= request["of"]:
            os.fsync(stream.fileno())
            if digest_of(part) != request["digest"]:
                part.unlink()
                return {"size": 0, "whole": False}, b""
            os.replace(str(part), str(place))
    return {"size": size, "whole": size >= request["of"]}, b""


def read_piece(base: Path, request: Request, data: bytes) -> Answer:
    """A piece of a job's file; with the last one, the digest of the whole."""
    path = folder_of(base, request) / request["name"]
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            stream.seek(request["offset"])
            piece = stream.read(request["most"])
    except FileNotFoundError:
        return {"size": None}, b""
    last = request["offset"] + len(piece) >= size
    return {"size": size, "sha256": digest_of(path) if last else None}, piece


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


# ---------------------------------------------------------------- jobs


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
        job["lock"] = str(base / "lock")
        job["files"] = {
            name: {"sha256": digest, "from": str(base / "blobs" / digest)}
            for name, digest in job["files"].items()
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        shutil.copyfile(str(base / "blobs" / job["runner"]), str(folder / "runner.py"))
        (folder / "heartbeat").touch()
        launch(folder)
    return {"attached": False}, b""


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
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait_s else fcntl.LOCK_NB))
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


OPERATIONS: Dict[str, Callable[[Path, Request, bytes], Answer]] = {
    "facts": tell_facts,
    "imports": try_imports,
    "have": have_files,
    "put": put_piece,
    "read": read_piece,
    "start": start_job,
    "poll": poll_job,
    "stop": stop_job,
}
