"""What a device executes: one measuring job, a fresh process for each candidate, one of them running at a time.

It travels, joined by ``bundle`` into one file with ``candidate``, ``child``, the ONNX reader and the runtimes of the
job: the standard library alone, Python 3.8 syntax. This parent lets the candidates load one after the other, then gives
out blocks of timed calls in mirrored order (A B, B A, ...), so that what drifts on the machine meets all of them alike.
A round of blocks that something disturbed is made again, a few times. A child that crashes is an entry in the result.
Nothing outlives the job: children end with the parent, the parent with its deadline and, where it was told to watch
standard input, with whoever started it, or with the interest of whoever asks for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any, Callable

from deploycompress.devices.candidate import Document, Failure, serve
from deploycompress.devices.child import Child
from deploycompress.devices.disturbance import disturbances, machine_state, undisturbed

SCHEMA = 2
CHECK_EVERY_S = 0.2
LAST_RESORT_S = 30  # after the deadline
THIS_FILE = os.path.abspath(__file__)  # before the job folder becomes the current one


def main(arguments: list[str], check: Callable[[str], Any], runtimes: Document) -> int:
    """``JOB_FOLDER [--watch | --alone]`` measures; ``--child`` is one candidate's process.

    ``--watch``: end with standard input; ``--alone``: end when nobody has asked for the job's ``alone_s``.
    ``runtimes``: name -> class.
    """
    if arguments[0] == "--child":
        return serve(check, runtimes)
    os.chdir(arguments[0])
    if "--watch" in arguments:
        threading.Thread(target=_end_with_standard_input, args=(os.getcwd(),), daemon=True).start()
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    if "--alone" in arguments:
        threading.Thread(target=_end_when_alone, args=(job["alone_s"],), daemon=True).start()
    result: Document = {
        "schema": SCHEMA,
        "runner": file_digest(Path(THIS_FILE)),
        "python": platform.python_version(),
        "error": None,
        "files": {},
        "candidates": {},
        "states": [],
    }
    try:
        with _Lock(job):
            _last_resort(job["deadline_s"] + LAST_RESORT_S)
            result["files"] = lay_out(job["files"])
            (measure if job["do"] == "measure" else one_by_one)(job, result)
    except Failure as failure:
        result["error"] = failure.to_json()
    write_aside(Path("result.json"), result)
    return 0


# ---------------------------------------------------------------- the parent


def measure(job: Document, result: Document) -> None:
    """Fill in ``result["candidates"]`` and ``result["states"]``; a candidate that fails drops out."""
    deadline = Deadline(job)
    children: dict[str, Child] = {}
    entries: Document = result["candidates"]
    order = [c["id"] for c in job["candidates"]]
    steps = len(order) + job["blocks"]
    try:
        entries.update({id: {"error": None, "blocks": []} for id in order})
        prepare(children, entries, job, deadline)
        for number, id in enumerate(order):
            if id in children:
                report(number / steps, "loading and warming up " + id)
                attempt(children, entries, id, {"do": "open"}, deadline)
        result["states"].append(machine_state())
        done, began = 0, time.monotonic()
        while another(job, result, done, time.monotonic() - began):
            told = (
                f"block {done + 1} of {job['blocks']}" if done < job["blocks"] else "a disturbed block again"
            )
            report(min(1.0, (len(order) + done) / steps), told)
            for id in order if done % 2 == 0 else reversed(order):
                if id in children:
                    attempt(children, entries, id, {"do": "block"}, deadline)
            result["states"].append(machine_state())
            done += 1
    finally:
        for child in children.values():
            child.end()


def another(job: Document, result: Document, done: int, spent_s: float) -> bool:
    """Whether one more round is to be made: those asked for, then as many again as were disturbed, within limits.

    Where they take longer than the job wants, as many as it cannot do without are enough.
    """
    wanted, left = job["blocks"], job["blocks"] + job["extra_blocks"] - done
    if done >= job["fewest_blocks"] and job["enough_s"] is not None and spent_s >= job["enough_s"]:
        return False
    entries = result["candidates"]
    if done < wanted or not left:
        return bool(left)
    sound = {id: entry["blocks"] for id, entry in entries.items() if entry["error"] is None}
    found = disturbances(result["states"], sound, job["candidates"])
    quiet = sum(not kinds for kinds in found)
    return bool(sound) and quiet < wanted and undisturbed(found + [[]] * left, wanted) is not None


def one_by_one(job: Document, result: Document) -> None:
    """Let each candidate profile its operators, answer the job's feeds, or build; its entry says what came of it."""
    deadline = Deadline(job)
    children: dict[str, Child] = {}
    entries: Document = result["candidates"]
    order = [c["id"] for c in job["candidates"]]
    entries.update({id: {"error": None} for id in order})
    try:
        prepare(children, entries, job, deadline)
        for number, id in enumerate(order):
            if id in children:
                report(number / len(order), id)
                attempt(children, entries, id, {"do": job["do"]}, deadline)
            if id in children:
                children.pop(id).end()
    finally:
        for child in children.values():
            child.end()


class Deadline:
    """When the next answer has to be there: after the job's ``answer_s``, where it has one, and within the job."""

    def __init__(self, job: Document) -> None:
        self._end: float = time.monotonic() + job["deadline_s"]
        self._answer_s: float | None = job.get("answer_s")

    def next(self) -> float:
        """By ``time.monotonic``."""
        return self._end if self._answer_s is None else min(self._end, time.monotonic() + self._answer_s)


def prepare(children: dict[str, Child], entries: Document, job: Document, deadline: Deadline) -> None:
    """Start a process for each candidate; they import their libraries at the same time, before anything is measured."""
    report(0.0, "starting")
    for number, candidate in enumerate(job["candidates"]):
        children[candidate["id"]] = Child(THIS_FILE, number, candidate, job)
        children[candidate["id"]].tell({"do": "prepare"})
    for id in list(children):
        attempt(children, entries, id, None, deadline)


def attempt(
    children: dict[str, Child], entries: Document, id: str, command: Document | None, deadline: Deadline
) -> None:
    """Let one child do one thing, or what it was told; whatever it reports, or how it failed, goes into its entry."""
    try:
        if command is not None:
            children[id].tell(command)
        answer = children[id].answer(deadline.next())
    except Failure as failure:
        entries[id]["error"] = failure.to_json()
        children.pop(id).end()
        return
    block = answer.pop("block", None)
    if block is not None:
        entries[id]["blocks"].append(block)
    entries[id].update(answer)


# ---------------------------------------------------------------- files, and the end of processes


def lay_out(files: Document) -> Document:
    """Copy the job's files to their places in the job folder; gives the digests of what lies there."""
    found = {}
    for name, of in files.items():
        place = Path(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(of["from"], str(place))
        except OSError as error:
            raise Failure("files", f"{name} cannot be put in place: {error.strerror}") from error
        found[name] = file_digest(place)
        if found[name] != of["sha256"]:
            raise Failure("files", f"{name} has the digest {found[name]}, expected {of['sha256']}")
    return found


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def write_aside(path: Path, document: Document, durable: bool = True) -> None:
    """A reader sees the old file or the new one whole."""
    aside = Path(str(path) + ".tmp")
    with aside.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, allow_nan=False)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    os.replace(str(aside), str(path))


def report(done: float, message: str) -> None:
    write_aside(Path("progress.json"), {"done": done, "message": message}, durable=False)


def open_lock(path: str) -> Any:
    """The file that all accounts of a device lock, made where it is missing; in a folder that they may all write to.

    The kernel refuses O_CREAT for another's file in a sticky folder (fs.protected_regular), and nobody follows a link.
    """
    while True:
        for mode, flags in (("r+", os.O_RDWR), ("r", os.O_RDONLY)):
            try:
                return os.fdopen(os.open(path, flags | os.O_NOFOLLOW), mode, errors="replace")
            except PermissionError:
                continue
            except FileNotFoundError:
                break
            except OSError:  # a link, a folder
                pass
        else:
            raise Failure(
                "busy", path + " cannot be opened, and without it nobody knows who measures: take it away"
            )
        with contextlib.suppress(FileExistsError):
            made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            os.fchmod(made, 0o666)  # whatever the account's mask is
            return os.fdopen(made, "r+", errors="replace")


class _Lock:
    """One measurement at a time on one device; the kernel lets go when the process ends."""

    def __init__(self, job: Document) -> None:
        self.path, self.wait_s = job.get("lock"), job.get("lock_wait_s", 0.0)

    def __enter__(self) -> None:
        if self.path is None:
            return
        import fcntl

        self.stream = open_lock(self.path)  # open for as long as the lock is held
        give_up = time.monotonic() + self.wait_s
        while True:
            try:
                fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                who = self._holder()
                if time.monotonic() > give_up:
                    raise Failure(
                        "busy", f"{who} has held the device for {self.wait_s:.0f} s; wait for it, or end it"
                    ) from None
            report(0.0, f"waiting: {who} holds the device")
            time.sleep(CHECK_EVERY_S)
        if not self.stream.writable():  # another account's, from before they shared it
            return
        self.stream.seek(0)
        self.stream.truncate()
        user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"user {os.getuid()}"
        self.stream.write(f"process {os.getpid()} of {user}, since {time.strftime('%H:%M:%S')}")
        self.stream.flush()

    def _holder(self) -> str:
        """Who wrote last that it holds the lock: whoever does now, or has just let go."""
        self.stream.seek(0)
        told = "".join(sign if sign.isprintable() else " " for sign in self.stream.read(200))
        return f"another measurement ({told})" if told else "another measurement"

    def __exit__(self, *error: Any) -> None:
        if self.path is not None:
            self.stream.close()


def _end_with_standard_input(folder: str) -> None:
    """The other end of the pipe is closed when the host's process ends, however it ends."""
    while os.read(0, 4096):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)  # the children end with their parent


def _end_when_alone(seconds: float) -> None:
    """Whoever wants the result touches a file; by this process's own clock, since the device's may be set."""
    seen, since = 0.0, time.monotonic()
    while time.monotonic() - since <= seconds:
        touched = os.stat("heartbeat").st_mtime
        if touched != seen:
            seen, since = touched, time.monotonic()
        time.sleep(min(5.0, seconds / 4))
    os._exit(1)


def _last_resort(seconds: float) -> None:
    """Ends the process even if everything above fails to: the default action of SIGALRM."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds) + 1)
