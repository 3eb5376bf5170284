"""Kernel locks on files: freed by the kernel when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploycompress.errors import EnvironmentMissing
from deploycompress.writing import lock_file


@contextmanager
def lock(
    path: Path,
    *,
    wait_s: float | None,
    waiting: Callable[[], None] = lambda: None,
    shared: bool = False,
) -> Iterator[None]:
    """Hold the lock on ``path``: alone, or together with others that also hold it ``shared``.

    ``wait_s``: how long to wait for another holder, None for ever; ``waiting`` is called once when
    there is one. Raises EnvironmentMissing when it is still held after that. The descriptor is not
    inherited by programs that are started while it is held.
    """
    descriptor = lock_file(path)
    try:
        if not _try(descriptor, shared):
            waiting()
            _wait(descriptor, path, wait_s, shared)
        yield
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether someone holds the lock on ``path`` now."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return not _try(descriptor)
    finally:
        os.close(descriptor)


def _try(descriptor: int, shared: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(descriptor: int, path: Path, wait_s: float | None, shared: bool) -> None:
    deadline = None if wait_s is None else time.monotonic() + wait_s
    while not _try(descriptor, shared):
        if deadline is not None and time.monotonic() > deadline:
            raise EnvironmentMissing(
                f"another run holds the lock {path} (waited {wait_s:g} s); wait for it to end, or use another --out"
            )
        time.sleep(0.05)
