"""Artefacts, their digests and their entries in a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploycompress.writing import (
    copy_folder as copy_folder,  # they publish artefacts, and are asked for here
)
from deploycompress.writing import publish as publish
from deploycompress.writing import remove as remove
from deploycompress.writing import write_json as write_json
from deploycompress.writing import write_text as write_text

Kind = Literal["checkpoint", "onnx", "openvino", "engine", "package"]

MANIFEST = "manifest.json"


# ---------------------------------------------------------------- digests


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's contents, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(document: Any) -> str:
    """One spelling for equal documents: sorted keys, no spaces, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest_json(document: Any) -> str:
    return digest_bytes(canonical_json(document).encode())


# ---------------------------------------------------------------- artefacts


@dataclass(frozen=True)
class FileRecord:
    """One file of an artefact; ``name`` is relative to the artefact's own folder, '/'-separated."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder of files, that a step made; its digest covers every byte of it.

    A single file's digest is that file's; a folder's is the digest of the list of its files.
    """

    id: str
    kind: Kind
    path: Path
    sha256: str
    bytes: int
    files: tuple[FileRecord, ...]
    precision: str = "fp32"
    stage: str = ""  # id of the step that made it; filled in when the step is published
    details: Mapping[str, Any] = field(default_factory=dict)  # opset, scheme, exporter, runtime ...
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        id: str,
        kind: Kind,
        path: Path,
        *,
        precision: str = "fp32",
        stage: str = "",
        details: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Artifact:
        """Describe what lies at ``path``, reading every byte of it once."""
        if path.is_dir():
            files = file_records(path)
            digest = digest_json([[f.name, f.sha256, f.bytes] for f in files])
        else:
            files = (FileRecord(path.name, digest_file(path), path.stat().st_size),)
            digest = files[0].sha256
        return cls(
            id,
            kind,
            path,
            digest,
            sum(f.bytes for f in files),
            files,
            precision,
            stage,
            details or {},
            metrics or {},
        )

    @property
    def main_file(self) -> Path:
        """The file a runtime opens: the artefact itself, or the ``model.*`` file of its folder."""
        if self.path.is_dir():
            names = [f.name for f in self.files if f.name in ("model.onnx", "model.xml", "model.engine")]
            return self.path / names[0] if names else self.path
        return self.path

    def to_json(self, folder: Path) -> dict[str, Any]:
        """The manifest entry, with the path relative to ``folder``; a file that a configuration names lies outside."""
        return {
            "id": self.id,
            "kind": self.kind,
            "path": (
                self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path
            ).as_posix(),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "files": [[f.name, f.sha256, f.bytes] for f in self.files],
            "precision": self.precision,
            "stage": self.stage,
            "details": dict(self.details),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], folder: Path) -> Artifact:
        files = tuple(FileRecord(*entry) for entry in document["files"])
        fields = {k: v for k, v in document.items() if k not in ("path", "files")}
        return cls(path=folder / document["path"], files=files, **fields)


def damaged(artifact: Artifact) -> str | None:
    """Why the artefact on disk is not the one that was recorded, or None when it is."""
    root = artifact.path if artifact.path.is_dir() else artifact.path.parent
    reason = damaged_files(root, artifact.files)
    folder = artifact.path.is_dir()
    if reason is None and folder and len(list(walk_files(artifact.path))) != len(artifact.files):
        return f"{artifact.path.name} holds files that are not recorded"
    return reason


def damaged_files(root: Path, records: Iterable[FileRecord]) -> str | None:
    """Why one of these files below ``root`` is not the one that was recorded, or None when all are."""
    for record in records:
        path = root / record.name
        if path.is_symlink() or not path.is_file():
            return f"{record.name} is missing"
        if path.stat().st_size != record.bytes:
            return f"{record.name} has {path.stat().st_size} bytes, expected {record.bytes}"
        if digest_file(path) != record.sha256:
            return f"{record.name} has other contents than recorded"
    return None


def file_records(folder: Path) -> tuple[FileRecord, ...]:
    """Every file below ``folder``, each read once."""
    return tuple(
        FileRecord(p.relative_to(folder).as_posix(), digest_file(p), p.stat().st_size)
        for p in walk_files(folder)
    )


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, in one fixed order."""
    yield from sorted(p for p in folder.rglob("*") if not p.is_dir())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
