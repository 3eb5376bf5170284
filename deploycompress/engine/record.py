"""What is written down of a step: its manifest, and the run's own record of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploycompress.artifact import (
    MANIFEST,
    Artifact,
    canonical_json,
    digest_json,
    file_records,
    read_json,
    write_json,
)
from deploycompress.contracts import Inputs, Outcome
from deploycompress.engine.plan import Step
from deploycompress.engine.store import seal
from deploycompress.errors import DeployCompressError, StageFailed


@dataclass(frozen=True)
class StepRecord:
    """How one step of this run went; kept in run.json."""

    id: str
    stage: str
    directory: str
    state: str = "not_run"  # done, failed, not_run
    reused: bool = False
    seconds: float = 0.0
    error: Mapping[str, Any] | None = None
    undone: str = ""  # why what it made did not go on

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def error_record(error: DeployCompressError) -> dict[str, Any]:
    return {"class": type(error).__name__, "message": str(error), "exit_code": error.exit_code}


def write_manifest(
    folder: Path,
    step: Step,
    key: Mapping[str, Any],
    inputs: Inputs,
    outcome: Outcome,
    parity: Mapping[str, float],
    seconds: float,
    inexact: str | None,
) -> None:
    """Write ``folder/manifest.json``; raises StageFailed when a figure in it is not a number.

    ``inexact``: why the step, made again with the same key, may not be the same bit by bit.

    It names no step of this run: another pipeline may reuse it under another id. ``sign`` does that.
    """
    from deploycompress.measure.environment import environment

    artifacts = [a.to_json(folder) for a in outcome.artifacts]
    own = {
        a.path.parent / f.name if a.path.is_file() else a.path / f.name
        for a in outcome.artifacts
        for f in a.files
    }
    others = [f for f in file_records(folder) if folder / f.name not in own]
    manifest: dict[str, Any] = {
        "schema": 1,
        "stage": step.stage_name,
        "key": dict(key),
        "key_digest": digest_json(key),
        "inputs": {name: [{"id": a.id, "sha256": a.sha256} for a in given] for name, given in inputs.items()},
        "artifacts": artifacts,
        "files": [[f.name, f.sha256, f.bytes] for f in others],  # beside the artefacts
        "metrics": dict(outcome.metrics),
        "parity": dict(parity),
        "measurements": [m.to_json() for m in outcome.measurements],
        "notes": [asdict(n) for n in outcome.notes],
        "details": dict(outcome.details),
        "seconds": round(seconds, 3),
        "inexact": inexact,
        "environment": environment(),
    }
    try:
        canonical_json(manifest)
    except ValueError as error:
        raise StageFailed(f"{step.id}: a figure in the step's record is NaN or infinite ({error})") from error
    write_json(folder / MANIFEST, manifest | {"seal": seal(manifest)})


def sign(folder: Path, step: Step, *, reused: bool) -> None:
    """Put this run's name of the step, and of its artefacts, into the manifest of its copy in the run directory."""
    manifest = read_json(folder / MANIFEST)
    named = signed(read_artifacts(folder), step.id)
    changes = {
        "id": step.id,
        "directory": step.directory,
        "artifacts": [a.to_json(folder) for a in named],
        "reused": reused,
    }
    write_json(folder / MANIFEST, manifest | changes)


def signed(artifacts: tuple[Artifact, ...], step_id: str) -> tuple[Artifact, ...]:
    """The artefacts with the step's name on them: a stage does not know its step's id, and leaves ``id`` empty."""
    return tuple(replace(a, stage=step_id, id=f"{step_id}/{a.id}" if a.id else step_id) for a in artifacts)


def read_artifacts(folder: Path) -> tuple[Artifact, ...]:
    """The artefacts that the step published in ``folder`` made, best first."""
    return tuple(Artifact.from_json(entry, folder) for entry in read_json(folder / MANIFEST)["artifacts"])
