"""Keeps a machine quiet while something is measured on it: a lock that all work shares, and a measurement has alone.

Only where a sweep runs several pipelines at a time, whose processes find the lock by an environment variable; elsewhere
nothing here does anything. Every working process of a run holds a share. One that measures on this machine waits until
nobody else works, and from then on works alone until its step ends, so that a step of many measurements waits once.
Whoever waits for something else (another run's step, a folder of the store) gives its share back first; without that,
it and the one it waits for could wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploycompress.config.devices import LOCAL
from deploycompress.writing import lock_file

VARIABLE = (
    "DEPLOYCOMPRESS_SWEEP"  # the sweep's folder, where devices are queued for; this machine's lock is its own
)
POLL_S = 0.1

_held: dict[str, int] = {}  # "machine" -> descriptor of what this process holds: a share, or all
_alone = False
_rehearses = False
_waited_s = 0.0
_tell: Callable[[bool], None] | None = None


@contextmanager
def sweeping(folder: Path) -> Iterator[None]:
    """This process, and those that it starts in this block, are of the sweep in ``folder``."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        rest()
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def on_waiting(tell: Callable[[bool], None]) -> None:
    """Have ``tell`` called with True when this process begins to wait for its turn, and with False when it has it."""
    global _tell
    _tell = tell


def rehearse() -> None:
    """What this process measures is thrown away: it needs no quiet for it, and waits for nobody."""
    global _rehearses
    _rehearses = True


def waited_s() -> float:
    """How long this process has waited in all: no part of what its work takes."""
    return _waited_s


def machine_lock() -> Path:
    """One for all sweeps of this user on this machine; never on a shared folder."""
    return Path(tempfile.gettempdir()) / f"deploycompress-{os.getuid()}-quiet.lock"


def work(check: Callable[[], None] = lambda: None) -> None:
    """Hold a share of the machine from now on; waits while something is measured, calling ``check``, which may raise."""
    if VARIABLE in os.environ and not _held:
        _take(fcntl.LOCK_SH, check)


def rest() -> None:
    """Give back what is held: from now on this process only waits."""
    global _alone
    _alone = False
    for descriptor in _held.values():
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a child has inherited the descriptor
        os.close(descriptor)
    _held.clear()


@contextmanager
def resting(check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait for others in this block, with nothing held; what was held before is a share again after it."""
    held = bool(_held)
    rest()
    try:
        yield
    finally:
        if held:
            work(check)


@contextmanager
def measuring(device: str) -> Iterator[None]:
    """Measure on ``device`` in this block: alone on this machine if it is that one, and until ``rest``; elsewhere in turn."""
    global _alone
    folder = os.environ.get(VARIABLE)
    if folder is None or (device == LOCAL and (_alone or _rehearses)):
        yield
    elif device == LOCAL:
        rest()
        _take(fcntl.LOCK_EX, lambda: None)
        _alone = True
        yield
    else:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", device)
        with _open(Path(folder) / "locks" / f"{name}.lock") as descriptor:
            _lock(descriptor, fcntl.LOCK_EX, lambda: None)
            yield


def _take(how: int, check: Callable[[], None]) -> None:
    """The lock on the machine, behind whoever asked before: a measurement that waits is not overtaken by new work."""
    with _open(machine_lock().with_suffix(".queue")) as queue:
        _lock(queue, fcntl.LOCK_EX, check)
        descriptor = lock_file(machine_lock())
        try:
            _lock(descriptor, how, check)
        except BaseException:
            os.close(descriptor)
            raise
        _held["machine"] = descriptor


def _lock(descriptor: int, how: int, check: Callable[[], None]) -> None:
    global _waited_s
    if _got(descriptor, how):
        return
    began = time.monotonic()
    if _tell is not None:
        _tell(True)
    try:
        while not _got(descriptor, how):
            check()
            time.sleep(POLL_S)
    finally:
        if _tell is not None:
            _tell(False)
        _waited_s += time.monotonic() - began


def _got(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = lock_file(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
