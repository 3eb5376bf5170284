"""What the files of a data set contain, as digests for the keys of the steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploycompress.artifact import digest_file, digest_json, read_json, write_json
from deploycompress.contracts import Event, Store

REMEMBERED_BYTES = 256_000_000  # less than this is read again each time: a fraction of a second
READERS = 8  # files at a time
SETTLED_S = 10.0  # a file changed later than that may change again without a new time stamp
SILENT_S, TELL_S = 10.0, 60.0  # before the first line of a long reading, and between two

Digests = list[list[str | int]]  # [name below the root, bytes, SHA-256 of the contents] of every file


def digests_of(
    files: Sequence[Path],
    root: Path | None,
    store: Store | None = None,
    emit: Callable[[Event], None] = lambda event: None,
) -> Digests:
    """Name below ``root``, size in bytes and SHA-256 of the whole contents of every file, in order of the names.

    Every byte counts: a folder moved or copied keeps its digests, a changed pixel does not. The digests of large
    data are kept in ``store`` under path, size and time of change of each file, so that they are read only once;
    ``emit`` is told how far that is where it takes long.
    """
    named = sorted((_name(file, root), file) for file in files)
    stats = [file.stat() for _, file in named]
    sizes = [stat.st_size for stat in stats]

    def read() -> Digests:
        with ThreadPoolExecutor(READERS) as pool:  # many small files wait for the disk or the network
            digests = _told(pool.map(digest_file, (file for _, file in named)), sizes, emit)
            return [
                [name, size, digest] for (name, _), size, digest in zip(named, sizes, digests, strict=True)
            ]

    now = time.time()
    # A time that is still to come, by another clock, says nothing; the system's own record of the change does.
    changed = (stat.st_mtime if stat.st_mtime <= now else stat.st_ctime for stat in stats)
    settled = all(now - at > SETTLED_S for at in changed)
    if store is None or not settled or sum(sizes) < REMEMBERED_BYTES:
        return read()
    state = [
        [str(file.resolve()), s.st_size, s.st_mtime_ns] for (_, file), s in zip(named, stats, strict=True)
    ]
    folder = store.folder(
        "data",
        {"state": digest_json(state)},
        lambda place: write_json(place / "digests.json", {"digests": read()}),
    )
    digests: Digests = read_json(folder / "digests.json")["digests"]
    return digests


def _told(digests: Iterable[str], sizes: Sequence[int], emit: Callable[[Event], None]) -> Iterator[str]:
    """``digests`` as they come, of files of these sizes in bytes."""
    began, next_s, read, total = time.monotonic(), SILENT_S, 0, sum(sizes)
    for size, digest in zip(sizes, digests, strict=True):
        read += size
        spent_s = time.monotonic() - began
        if spent_s >= next_s and read < total:
            words = f"all of the data is read once, {read / 1e9:.1f} of {total / 1e9:.1f} GB"
            left_s = spent_s * (total - read) / max(1, read)
            emit(Event("progress", words, {"seconds_left": left_s}))
            next_s = spent_s + TELL_S
        yield digest


def _name(file: Path, root: Path | None) -> str:
    if root is not None and file != root and file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return file.name
