"""The only functions that change files: what they put under a name is there whole, and on the disk, or not at all.

``tests/test_writing.py`` refuses everything else in the package that writes, renames, copies or deletes. What
a library writes by itself goes between ``saving`` into a folder that nobody reads before it is published.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from deploycompress.crash_points import reached

ASIDE = re.compile(r"\..+\.[0-9a-f]{32}")  # what is being written, or was when its writer was killed


# ---------------------------------------------------------------- whole, or not at all


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` so that a reader, or a crash, sees the old file or the new one whole."""
    make_folder(path.parent)
    aside = _aside(path)
    try:
        with _operation("write", path), aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
        _sync_file(aside)
        _rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    write_text(path, json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def publish(workdir: Path, destination: Path) -> None:
    """Make a finished folder visible under its final name by one rename, after it is on the disk.

    ``destination`` must be on the same file system. Raises FileExistsError when it is taken.
    """
    inside = sorted(workdir.rglob("*"))
    for path in inside:
        if not path.is_dir():
            _sync_file(path)
    for folder in [*(p for p in inside if p.is_dir()), workdir]:
        sync_folder(folder)
    make_folder(destination.parent)
    if destination.exists():
        raise FileExistsError(destination)
    _rename(workdir, destination)
    sync_folder(destination.parent)


def copy_folder(source: Path, destination: Path) -> None:
    """Copy a folder to its final name; copies, never links (onnx and ONNX Runtime refuse those)."""
    aside = _aside(destination)
    make_folder(destination.parent)
    try:
        copy(source, aside)
        if destination.exists():
            remove(destination)
        publish(aside, destination)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def move(source: Path, destination: Path) -> None:
    """Give a file, or a folder, another name on the same file system; a file that has the name gives way."""
    make_folder(destination.parent)
    _rename(source, destination)
    sync_folder(destination.parent)


def remove(path: Path) -> None:
    """Take a file or a folder away: first out of sight by a rename, then from the disk."""
    aside = _aside(path)
    _rename(path, aside)
    clear(aside)


def sweep(folder: Path) -> None:
    """Take away what writers that were killed left below ``folder``; nobody may be writing there now."""
    for path in sorted(folder.rglob(".*"), reverse=True):
        if ASIDE.fullmatch(path.name):
            clear(path)


# ---------------------------------------------------------------- in a folder that nobody reads yet


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """Around the call of a library that writes ``path``, inside a folder that will be published or thrown away."""
    with _operation("save", path):
        yield path


def copy(source: Path, destination: Path) -> Path:
    """Copy a file, or a folder with all that is in it, to where nobody looks yet."""
    with _operation("copy", destination):
        if source.is_dir():
            _copy_tree(source, destination)
        else:
            shutil.copyfile(source, destination)
    return destination


def _copy_tree(source: Path, destination: Path) -> None:
    """As ``shutil.copytree``, whose error no longer says whether there was no room."""
    destination.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        place = destination / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            shutil.copyfile(path, place)


def clear(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, that nobody looks at; one that is not there is no error."""
    with _operation("delete", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """The folder and those above it; one that is there is left as it is."""
    if not path.is_dir():
        with _operation("mkdir", path):
            path.mkdir(parents=True, exist_ok=True)


def lock_file(path: Path) -> int:
    """The descriptor of a file that is only there to be locked; no program that is started inherits it."""
    make_folder(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def append_to(path: Path) -> TextIO:
    """A log: lines are added to it, and half a line is the most that a crash can cost."""
    return path.open("a", buffering=1, encoding="utf-8")


# ---------------------------------------------------------------- single operations


def sync_folder(folder: Path) -> None:
    with _operation("sync", folder):
        _sync(folder)


def _sync_file(path: Path) -> None:
    with _operation("sync", path):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(source: Path, destination: Path) -> None:
    with _operation("rename", destination):
        source.replace(destination)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def _operation(name: str, path: Path) -> Iterator[None]:
    reached(f"before {name}", path)
    yield
    reached(f"after {name}", path)
