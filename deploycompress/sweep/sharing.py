"""Whether a folder can be shared: kernel locks that hold, and renames that replace whole folders."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploycompress.errors import EnvironmentMissing
from deploycompress.writing import clear, lock_file, move, write_text

FOR_WHAT = "trials that run at the same time would make a step twice, or read half of one"
REMEDY = "give --store (and --out) a folder on a file system with locks: a local disk, or NFS version 4"


@contextmanager
def probed(folder: Path) -> Iterator[Path]:
    """A folder in ``folder`` with a lock that is held in this block; another machine then tries ``look``.

    Raises EnvironmentMissing where locks or renames do not work here.
    """
    place = folder / f".probe-{uuid.uuid4().hex}"
    try:
        write_text(place / "token", place.name)
        with _locked(place / "lock"):
            if _free(place / "lock"):
                raise EnvironmentMissing(f"{folder}: a lock there keeps nobody out: {FOR_WHAT}; {REMEDY}")
            write_text(place / "made" / "file", "")
            move(place / "made", place / "named")
            if not (place / "named" / "file").exists():
                raise EnvironmentMissing(
                    f"{folder}: a renamed folder is not whole there: {FOR_WHAT}; {REMEDY}"
                )
            yield place
    except OSError as error:
        raise EnvironmentMissing(
            f"{folder}: locks and renames do not work there ({error.strerror or error}): {FOR_WHAT}; {REMEDY}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            clear(place)


def look(place: str) -> str:
    """From another machine: why the probed folder is not shared with it, and "" where it is."""
    folder = Path(place)
    try:
        if (folder / "token").read_text(encoding="utf-8") != folder.name:
            return "another folder is there"
        if not (folder / "named" / "file").exists():
            return "a folder that was renamed is not seen there"
        if _free(folder / "lock"):
            return "a lock that is held by another machine can be taken there"
    except OSError as error:
        return f"{error.strerror or error}"
    return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = lock_file(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _free(path: Path) -> bool:
    """Whether a second holder gets the lock."""
    try:
        with _locked(path):
            return True
    except BlockingIOError:
        return False
