"""Whether a folder can be shared: kernel locks that hold, and renames that replace whole folders."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploycompress.errors import EnvironmentMissing

FOR_WHAT = "trials that run at the same time would make a step twice, or read half of one"
REMEDY = "give --store (and --out) a folder on a file system with locks: a local disk, or NFS version 4"


@contextmanager
def probed(folder: Path) -> Iterator[Path]:
    """A folder in ``folder`` with a lock that is held in this block; another machine then tries ``look``.

    Raises EnvironmentMissing where locks or renames do not work here.
    """
    place = folder / f".probe-{uuid.uuid4().hex}"
    try:
        place.mkdir(parents=True)
        (place / "token").write_text(place.name, encoding="utf-8")
        with _locked(place / "lock"):
            if _free(place / "lock"):
                raise EnvironmentMissing(f"{folder}: a lock there keeps nobody out: {FOR_WHAT}; {REMEDY}")
            (place / "made").mkdir()
            (place / "made" / "file").touch()
            (place / "made").rename(place / "named")
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
        shutil.rmtree(place, ignore_errors=True)


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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
