"""The files below ``data.root``, which is a folder or an archive of one."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from deploycompress.errors import ConfigError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


@dataclass(frozen=True)
class Tree:
    """Names below the root, '/'-separated and sorted; hidden ones and __MACOSX are left out."""

    root: Path
    names: tuple[str, ...]  # of files
    folders: tuple[str, ...]
    _read: Callable[[str], bytes]
    archive: bool = False

    def read(self, name: str) -> bytes:
        """The contents of one file. Raises ConfigError naming it."""
        try:
            return self._read(name)
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(
                f"{self.root / name} cannot be read: {error}; look at its permissions, or copy it again"
            ) from error

    def place(self, name: str) -> Path:
        """Where a user finds the file: for messages."""
        return self.root / name

    def files(self) -> tuple[Path, ...]:
        """What lies on the disk: the archive itself, or every file of the folder."""
        return (self.root,) if self.archive else tuple(self.root / name for name in self.names)


def open_tree(root: Path | None, source: str, expected: str) -> Tree:
    """The tree at ``root``. Raises ConfigError where there is none, saying what ``source`` ``expected``.

    A compressed tar is read into memory at once, a plain one and a zip file by file; a single folder around all of an
    archive is left out.
    """
    if root is None:
        raise ConfigError(f"data source {source} needs data.root: {expected}")
    if root.is_dir():
        tree = _folder(root)
    elif root.is_file() and root.name.lower().endswith(ARCHIVES):
        tree = _archive(root, root.stat().st_mtime_ns)
    else:
        what = "is a file and no archive of a kind that is read" if root.exists() else "does not exist"
        raise ConfigError(
            f"data.root {root} {what}; {source} expects {expected}, or a {' '.join(ARCHIVES)} of it"
        )
    for name in tree.names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"data.root {root}: the name {os.fsencode(name)!r} is not in UTF-8; rename it"
            ) from None
    if not tree.names:
        raise ConfigError(f"data.root {root} holds no files; {source} expects {expected}")
    return tree


def _folder(root: Path) -> Tree:
    names, folders = [], []
    for place, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if _visible(name))
        below = Path(place).relative_to(root)
        folders += [(below / name).as_posix() for name in inner]
        names += [(below / name).as_posix() for name in files if _visible(name)]
    return Tree(root, tuple(sorted(names)), tuple(sorted(folders)), lambda name: (root / name).read_bytes())


@lru_cache(maxsize=1)  # the splits and the digest are asked for one after the other
def _archive(root: Path, _changed: int) -> Tree:
    try:
        if root.name.lower().endswith(".zip"):
            archive = zipfile.ZipFile(root)
            entries = {entry.filename: entry.is_dir() for entry in archive.infolist()}
            return _stripped(root, entries, archive.read)
        contents: dict[str, bytes] = {}
        places: dict[str, tuple[int, int]] = {}
        entries = {}
        with tarfile.open(root) as tar:  # nothing is unpacked: a name cannot lead outside
            plain = root.name.lower().endswith(".tar")
            for member in tar:
                if member.isdir() or member.isfile():
                    entries[member.name] = member.isdir()
                if plain and member.isfile() and not member.issparse():
                    places[member.name] = member.offset_data, member.size
                    contents.pop(member.name, None)  # the last of a name counts
                elif member.isfile() and (stream := tar.extractfile(member)) is not None:
                    contents[member.name] = stream.read()
        return _stripped(root, entries, _in_tar(root, places, contents))
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"data.root {root} cannot be read as an archive: {error}; copy it again") from error


def _in_tar(
    root: Path, places: Mapping[str, tuple[int, int]], contents: Mapping[str, bytes]
) -> Callable[[str], bytes]:
    """Reads what lies at ``places`` (offset, size in bytes) of the file, by several threads at once."""
    if not places:
        return contents.__getitem__
    opened = root.open("rb")

    def read(name: str) -> bytes:
        if name in contents:
            return contents[name]
        offset, size = places[name]
        found = os.pread(opened.fileno(), size, offset)
        if len(found) < size:
            raise OSError(f"the archive ends after {len(found)} of {size} bytes of it")
        return found

    return read


def _stripped(root: Path, entries: dict[str, bool], read: Callable[[str], bytes]) -> Tree:
    """Without the one folder that everything lies in, where there is such a folder."""
    parts = {name: PurePosixPath(name).parts for name in entries}
    parts = {name: tuple(p for p in split if p != ".") for name, split in parts.items()}
    parts = {name: split for name, split in parts.items() if split and all(map(_visible, split))}
    tops = {split[0] for split in parts.values()}
    around = len(tops) == 1 and all(len(split) > 1 or entries[name] for name, split in parts.items())
    short = {"/".join(split[around:]): name for name, split in parts.items()}
    files = {inner: name for inner, name in short.items() if inner and not entries[name]}
    folders = {inner for inner, name in short.items() if inner and entries[name]} | set(_parents(files))
    return Tree(
        root, tuple(sorted(files)), tuple(sorted(folders)), lambda name: read(files[name]), archive=True
    )


def _parents(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        yield from (str(parent) for parent in PurePosixPath(name).parents if str(parent) != ".")


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
