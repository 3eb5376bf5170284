"""Which folder a run, or a sweep, may write to and take things away from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from deploycompress.config.wording import listed
from deploycompress.errors import ConfigError
from deploycompress.user_code import user_code_is_refused
from deploycompress.writing import lock_file

LOCK = ".lock"  # the first file that is made there
MARKS = (LOCK, "run.json")  # what has one is a run's; an archive may have left the hidden file out
TAKEN = re.compile(r"\d\d-.*|config\.yaml|devices\.yaml|manifest\.json|artifacts")  # deleted, or replaced


def own(given: Path | None, name: str) -> Path:
    """The folder ``given`` by --out, else runs/<name>, as an absolute path.

    Raises ConfigError where it is somebody else's and holds what a run replaces or deletes. Where user code is refused,
    so are links on the way to it and in it, for whoever wrote the pipeline may have made them.
    """
    folder = (given or Path("runs") / name).absolute()
    if user_code_is_refused():
        for place in () if given else (folder.parent, folder):
            _refuse_link(place)
        for place in _inside(folder):
            _refuse_link(place)
    if folder.is_dir() and not any((folder / mark).exists() for mark in MARKS):
        others = sorted(name for name in os.listdir(folder) if TAKEN.fullmatch(name))
        if others:
            raise ConfigError(
                f"{folder} is no run directory, and holds {listed(others)}, which a run would replace or take away; "
                "name a new folder by --out"
            )
    return folder


def mark(folder: Path) -> None:
    """``folder`` is for a run: what is put there before it starts is its own."""
    os.close(lock_file(folder / LOCK))


def _inside(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def _refuse_link(place: Path) -> None:
    if place.is_symlink():
        raise ConfigError(
            f"{place} is a link to {os.readlink(place)}: nothing is written through links where user code is refused; "
            "remove it, or name another folder by --out"
        )
