"""Keeps a store in order: everything in it checked, and what nobody needs any more taken away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploycompress.artifact import walk_files
from deploycompress.engine.locks import held
from deploycompress.engine.store import CHECKPOINTS, FileStore, damage_of
from deploycompress.writing import ASIDE, clear, remove

DAY_S = 86_400.0


@dataclass(frozen=True)
class Found:
    """Something in the store: its place below the root, and what was the matter with it."""

    place: str
    reason: str
    bytes: int = 0


def verify(store: FileStore) -> tuple[int, list[Found]]:
    """How many things were looked at, and which were damaged: these are set aside, and made again when wanted.

    What a run is making or reading at this moment is left to it: it checks for itself.
    """
    damaged, number = [], 0
    for kind, place in store.entries():
        if held(store.root / "locks" / f"{place.name}.lock"):
            continue
        number += 1
        reason = damage_of(place, kind)
        if reason is not None and os.path.lexists(place):
            store.set_aside(place)
            damaged.append(Found(place.relative_to(store.root).as_posix(), reason))
    return number, damaged


def collect(store: FileStore, older_than_days: float, *, dry: bool) -> list[Found]:
    """Take away what was found damaged, what killed runs left, and what was not used for so many days.

    Only while no run uses the store, so hold it ``alone``. ``dry``: only say what would go.
    """
    taken = []
    for place, reason in _unwanted(store, time.time() - older_than_days * DAY_S):
        taken.append(Found(place.relative_to(store.root).as_posix(), reason, _size(place)))
        if not dry:
            (clear if ASIDE.fullmatch(place.name) else remove)(place)
    if not dry:
        for marker in (store.root / "locks").glob("*.lock"):
            if marker.name != "store.lock":  # nobody waits at any of them: the store is held alone
                clear(marker)
    return taken


def _unwanted(store: FileStore, before: float) -> Iterator[tuple[Path, str]]:
    for place in sorted((store.root / "quarantine").glob("*")):
        yield place, "was damaged"
    for place in sorted((store.root / "tmp").glob("*")):
        yield place, "left by a run that was killed"
    for place in sorted(store.root.rglob(".*")):
        if ASIDE.fullmatch(place.name) and not _inside(place, store.root / "quarantine", store.root / "tmp"):
            yield place, "left by a run that was killed"
    for _, place in store.entries():
        if place.lstat().st_mtime < before:
            yield place, "not used for long"
    for place in sorted((store.root / CHECKPOINTS).glob("*/*")):
        if not place.name.startswith(".") and _newest(place) < before:
            yield place, "of a step that was not gone on with"


def _inside(place: Path, *folders: Path) -> bool:
    return any(place.is_relative_to(folder) for folder in folders)


def _newest(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _size(place: Path) -> int:
    if place.is_dir() and not place.is_symlink():
        return sum(path.lstat().st_size for path in walk_files(place))
    return place.lstat().st_size
