"""What a device does for its controller: keeps files by their digest and jobs by their id, one request a process.

It travels with every request, joined to the machine's fingerprint: the standard library alone, Python 3.8 syntax.
Every operation may be asked for again when its answer was lost.
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
import site
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict

from deploycompress.devices.agent_jobs import (
    Answer,
    Refused,
    Request,
    folder_of,
    poll_job,
    start_job,
    stop_job,
)
from deploycompress.measure.environment import LIBRARIES, machine, system_libraries, versions

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


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
    return {
        "facts": {**machine(), "python": python, "libraries": {**versions(LIBRARIES), **system_libraries()}}
    }, b""


def try_imports(base: Path, request: Request, data: bytes) -> Answer:
    """Import libraries in a process of its own, since one that was built for another processor may crash.

    ``found``: whether one of the programs is here, where any is asked for.
    """
    if request["programs"] and not any(map(shutil.which, request["programs"])):
        return {"found": False}, b""
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
