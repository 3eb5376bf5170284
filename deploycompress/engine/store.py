"""The store: finished steps by key, and folders that are made once."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deploycompress.artifact import (
    MANIFEST,
    Artifact,
    damaged,
    digest_json,
    publish,
    read_json,
    remove,
    write_json,
)
from deploycompress.devices import quiet
from deploycompress.engine.locks import held, lock


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
    known to have happened, ``checkpoints/`` unfinished steps, ``quarantine/`` what was found damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    # ------------------------------------------------------------ finished steps

    def step(self, key: Mapping[str, Any]) -> Path:
        """Where the finished step of ``key`` is, or will be."""
        return self._place("steps", digest_json(key))

    def find(self, key: Mapping[str, Any], damage: Callable[[str], None]) -> Path | None:
        """The finished step of ``key``, read and checked byte by byte; None where it has to be made.

        A damaged one is set aside under ``quarantine/`` and its reason given to ``damage``.
        """
        folder = self.step(key)
        if not folder.exists():
            return None
        reason = _damage(folder, key)
        if reason is None:
            return folder
        aside = self.root / "quarantine" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        damage(reason)
        return None

    def lock_step(self, key: Mapping[str, Any], waiting: Callable[[], None]) -> Any:
        """Held while the step is looked up and made, so that two runs at once make it once."""
        return lock(self.root / "locks" / f"{digest_json(key)}.lock", wait_s=None, waiting=waiting)

    # ------------------------------------------------------------ other things kept

    def folder(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that ``make`` once filled for ``key``."""
        digest = digest_json({"folder": name, "key": key})
        place = self._place(f"folders/{name}", digest)
        with ExitStack() as stack:
            with quiet.resting():
                stack.enter_context(lock(self.root / "locks" / f"{digest}.lock", wait_s=None))
            if not place.exists():
                with self.workdir() as workdir:
                    make(workdir)
                    write_json(workdir / "key.json", key)
                    publish(workdir, place)
        return place

    def checkpoints(self, step: str) -> Path:
        """Where the unfinished step with this key digest keeps its progress."""
        place = self._place("checkpoints", step)
        place.mkdir(parents=True, exist_ok=True)
        return place

    def drop_checkpoints(self, step: str) -> None:
        """The step with this key digest is finished: its progress is of no use any more."""
        place = self._place("checkpoints", step)
        if place.exists():
            remove(place)

    def knows(self, fact: Mapping[str, Any]) -> bool:
        return self._place("facts", digest_json(fact)).exists()

    def learn(self, fact: Mapping[str, Any]) -> None:
        write_json(self._place("facts", digest_json(fact)), fact)

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
                path.mkdir(parents=True)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
                path.with_suffix(".lock").unlink(missing_ok=True)

    def _sweep(self) -> None:
        for marker in (self.root / "tmp").glob("*.lock"):
            if not held(marker):
                shutil.rmtree(marker.with_suffix(""), ignore_errors=True)
                marker.unlink(missing_ok=True)

    def _place(self, kind: str, digest: str) -> Path:
        return self.root / kind / digest[:2] / digest


def _damage(folder: Path, key: Mapping[str, Any]) -> str | None:
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["key"] != key:
            return "its record is of another key"
        if manifest["seal"] != seal(manifest):
            return "its record was changed"
        for entry in manifest["artifacts"]:
            artifact = Artifact.from_json(entry, folder)
            if folder not in Path(os.path.normpath(artifact.path)).parents:
                return f"its record names {entry['path']!r}, which lies outside of it"
            reason = damaged(artifact)
            if reason is not None:
                return reason
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its record cannot be read ({type(error).__name__}: {error})"
    return None


def seal(manifest: Mapping[str, Any]) -> str:
    """A digest over the record itself, so that an edited one is noticed (not a signature)."""
    return digest_json({k: v for k, v in manifest.items() if k != "seal"})
