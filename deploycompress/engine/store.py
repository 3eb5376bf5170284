"""The store: finished steps by key, and folders that are made once."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deploycompress.artifact import (
    MANIFEST,
    Artifact,
    FileRecord,
    damaged,
    damaged_files,
    digest_json,
    file_records,
    publish,
    read_json,
    walk_files,
    write_json,
)
from deploycompress.devices import quiet
from deploycompress.engine.locks import held, lock
from deploycompress.writing import clear, make_folder, move

STEPS, FOLDERS, FACTS, CHECKPOINTS = "steps", "folders", "facts", "checkpoints"


def default_root() -> Path:
    """``DEPLOYCOMPRESS_STORE``, else ``$XDG_CACHE_HOME/deploycompress``, else ``~/.cache/deploycompress``."""
    chosen = os.environ.get("DEPLOYCOMPRESS_STORE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache").absolute() / "deploycompress"


class FileStore:
    """Folders by key. A folder is complete when it is there: it arrives by one rename.

    ``steps/`` finished steps, ``folders/`` latency tables and timing caches, ``facts/`` what is only
    known to have happened, ``checkpoints/`` unfinished steps, ``quarantine/`` what was found damaged:
    whatever is read is checked byte by byte first; ``warn`` is told of what was set aside, and why.
    """

    def __init__(self, root: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        self.root, self._warn = root, warn

    def used(self, wait_s: float | None = None) -> Any:
        """Held by a run, together with other runs; what sorts out the store must hold it alone."""
        return lock(self.root / "locks" / "store.lock", wait_s=wait_s, shared=True)

    def alone(self, wait_s: float) -> Any:
        return lock(self.root / "locks" / "store.lock", wait_s=wait_s)

    # ------------------------------------------------------------ finished steps

    def step(self, key: Mapping[str, Any]) -> Path:
        """Where the finished step of ``key`` is, or will be."""
        return self._place(STEPS, digest_json(key))

    def find(self, key: Mapping[str, Any], damage: Callable[[str], None]) -> Path | None:
        """The finished step of ``key``, read and checked byte by byte; None where it has to be made.

        A damaged one is set aside under ``quarantine/`` and its reason given to ``damage``.
        """
        folder = self.step(key)
        if not os.path.lexists(folder):
            return None
        reason = damage_of(folder, STEPS)
        if reason is None:
            with contextlib.suppress(
                OSError
            ):  # it is of use still; nothing is lost where that cannot be noted
                os.utime(folder)
            return folder
        self.set_aside(folder)
        damage(reason)
        return None

    def lock_step(self, key: Mapping[str, Any], waiting: Callable[[], None]) -> Any:
        """Held while the step is looked up and made, so that two runs at once make it once."""
        return lock(self.root / "locks" / f"{digest_json(key)}.lock", wait_s=None, waiting=waiting)

    # ------------------------------------------------------------ other things kept

    def folder(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that ``make`` once filled for ``key``; what is added to it later is not looked at."""
        digest = digest_json({"folder": name, "key": key})
        place = self._place(f"{FOLDERS}/{name}", digest)
        with ExitStack() as stack:
            with quiet.resting():
                stack.enter_context(lock(self.root / "locks" / f"{digest}.lock", wait_s=None))
            self._keep_if_whole(place, FOLDERS)
            if not place.exists():
                with self.workdir() as workdir:
                    make(workdir)
                    files = [[f.name, f.sha256, f.bytes] for f in file_records(workdir)]
                    record = {"schema": 1, "folder": name, "key": dict(key), "files": files}
                    write_json(workdir / MANIFEST, record | {"seal": seal(record)})
                    publish(workdir, place)
        return place

    def checkpoints(self, step: str) -> Path:
        """Where the unfinished step with this key digest keeps its progress."""
        place = self._place(CHECKPOINTS, step)
        make_folder(place)
        return place

    def drop_checkpoints(self, step: str) -> None:
        """The step with this key digest is finished: its progress is of no use any more."""
        place = self._place(CHECKPOINTS, step)
        if place.exists():
            with self.workdir() as aside:  # where a killed run leaves nothing for good
                move(place, aside / "dropped")

    def knows(self, fact: Mapping[str, Any]) -> bool:
        place = self._place(FACTS, digest_json(fact))
        self._keep_if_whole(place, FACTS)
        return place.exists()

    def learn(self, fact: Mapping[str, Any]) -> None:
        with self.workdir() as workdir:
            write_json(workdir / "fact.json", fact)
            move(workdir / "fact.json", self._place(FACTS, digest_json(fact)))

    # ------------------------------------------------------------ what is damaged

    def entries(self) -> Iterator[tuple[str, Path]]:
        """Everything that is kept whole: (steps, folders or facts; its place)."""
        for kind, pattern in ((STEPS, "*/*"), (FOLDERS, "*/*/*"), (FACTS, "*/*")):
            for place in sorted((self.root / kind).glob(pattern)):
                if not place.name.startswith("."):
                    yield kind, place

    def set_aside(self, place: Path) -> None:
        """Out of the way, so that it is made again; ``cache gc`` deletes it."""
        move(place, self.root / "quarantine" / f"{place.name}-{uuid.uuid4().hex[:8]}")

    def _keep_if_whole(self, place: Path, kind: str) -> None:
        reason = damage_of(place, kind) if os.path.lexists(place) else None
        if reason is not None:
            self.set_aside(place)
            self._warn(f"{place.relative_to(self.root)} in the store was set aside: {reason}")

    # ------------------------------------------------------------ work in progress

    @contextmanager
    def workdir(self) -> Iterator[Path]:
        """An empty folder on the store's file system; gone at the end unless it was published.

        Its lock tells a later run whether the folder was left by one that was killed.
        """
        path = self.root / "tmp" / uuid.uuid4().hex
        with ExitStack() as stack:
            # One at a time, so that nobody sweeps a folder between its making and its locking.
            with lock(self.root / "locks" / "tmp.lock", wait_s=None):
                self._sweep()
                stack.enter_context(lock(path.with_suffix(".lock"), wait_s=None))
                make_folder(path)
            try:
                yield path
            finally:
                clear(path)
                clear(path.with_suffix(".lock"))

    def _sweep(self) -> None:
        for marker in (self.root / "tmp").glob("*.lock"):
            if not held(marker):
                clear(marker.with_suffix(""))
                clear(marker)

    def _place(self, kind: str, digest: str) -> Path:
        return self.root / kind / digest[:2] / digest


def damage_of(place: Path, kind: str) -> str | None:
    """Why what lies at ``place`` is not what was put there, or None when every byte is."""
    try:
        if kind == FACTS:
            return None if digest_json(read_json(place)) == place.name else "its record is of another fact"
        manifest = read_json(place / MANIFEST)
        key = manifest["key"] if kind == STEPS else {"folder": manifest["folder"], "key": manifest["key"]}
        if digest_json(key) != place.name:
            return "its record is of another key"
        if manifest["seal"] != seal(manifest):
            return "its record was changed"
        return unlike(place, manifest, complete=kind == STEPS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its record cannot be read ({type(error).__name__}: {error})"


def unlike(place: Path, manifest: Mapping[str, Any], *, complete: bool) -> str | None:
    """Why the files in ``place`` are not those of the record, or None; ``complete``: there may be no others."""
    files = [FileRecord(*entry) for entry in manifest.get("files", ())]
    artifacts = [Artifact.from_json(entry, place) for entry in manifest.get("artifacts", ())]
    for artifact in artifacts:
        if place not in Path(os.path.normpath(artifact.path)).parents:
            return f"its record names {str(artifact.path)!r}, which lies outside of it"
    reason = next((why for a in artifacts if (why := damaged(a)) is not None), damaged_files(place, files))
    recorded = 1 + len(files) + sum(len(a.files) for a in artifacts)
    complete = complete and "files" in manifest
    if reason is None and complete and sum(1 for _ in walk_files(place)) != recorded:
        return "it holds files that are not recorded"
    return reason


def seal(manifest: Mapping[str, Any]) -> str:
    """A digest over the record itself, so that an edited one is noticed (not a signature)."""
    return digest_json({k: v for k, v in manifest.items() if k != "seal"})
