"""What a finished run leaves to compare: its report, the files of its best artefact and baseline, its scores and gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deploycompress.artifact import MANIFEST, Artifact, damaged, read_json
from deploycompress.commands.given import Given, configured, made_for, open_given
from deploycompress.config import yaml_file
from deploycompress.config.schema import GATES, AccuracyGate, Gate
from deploycompress.errors import ConfigError
from deploycompress.report.document import Artefact, Report, Row, check, read

MOST_BYTES = 256 * 2**20  # of a file of scores
_SCORES = TypeAdapter(dict[str, list[float]])
_CLASSES = TypeAdapter(dict[str, dict[str, float]])


@dataclass(frozen=True)
class Run:
    """One run directory. ``judged_on`` is equal for two runs that judged the same samples of the same data."""

    path: Path
    report: Report
    best: Artefact
    row: Row  # of the best one, as it was measured then
    packed_bytes: int | None
    per_class: Mapping[str, float]  # of the best one
    scores: Sequence[float] | None  # of the best one, a sample each
    judged_on: Any
    raw: Mapping[str, Any]  # report.json as it was read

    @property
    def metric(self) -> float | None:
        """The primary metric of the best artefact."""
        return self.row.metrics.get(self.report.primary.name)

    @property
    def name(self) -> str:
        return str(self.path)

    def file_of(self, id: str) -> Given:
        """The file of one of its artefacts. Raises ConfigError where it is gone, or not the one that was made."""
        entry = next(a for a in self.raw["artifacts"] if a["id"] == id)
        try:
            artifact = Artifact.from_json(entry, self.path)
            shipped = next((s.file for s in self.report.ships if s.artifact == id), None)
            places = [artifact.path, *([self.path / "artifacts" / shipped] if shipped else [])]
            for place in places:
                if not place.resolve().is_relative_to(self.path.resolve()):
                    raise ConfigError(f"{self.path}: the path of {id} leads outside the run directory")
            if not artifact.path.exists() and shipped:  # what a CI job kept of the run
                return self._known(open_given(places[1], id), artifact)
            reason = damaged(artifact) if artifact.path.exists() else "its file is gone"
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ConfigError(f"{self.path}: the record of {id} cannot be read: {error}") from error
        if reason:
            raise ConfigError(f"{self.path}: {id} is not the artefact that was made: {reason}; run again")
        if artifact.kind == "checkpoint":
            raise ConfigError(
                f"{self.path}: {id} is a network; it needs its code, and is measured by its pipeline only"
            )
        return self._known(open_given(artifact.path, id), artifact)

    def _known(self, given: Given, artifact: Artifact) -> Given:
        """With its inputs, where it does not tell them itself, and what integers are below."""
        if given.artifact.sha256 != artifact.sha256:
            raise ConfigError(
                f"{self.path}: {artifact.id} is not the artefact that was made: other contents; run again"
            )
        declared = configured(self.raw.get("model", {}).get("inputs")) or {}
        inputs = given.inputs if given.inputs is not None else declared
        bounded = {
            name: replace(of, max=declared[name].max if name in declared else None)
            for name, of in inputs.items()
        }
        return replace(given, inputs=bounded or None, made_for=given.made_for or made_for(artifact.details))

    def gates(self) -> dict[str, Gate]:
        """The gates of its config.yaml. Raises ConfigError where they cannot be read."""
        path = self.path / "config.yaml"
        try:
            given = (yaml_file.load(path).data or {}).get("gates") or {}
            return {
                name: GATES.get(name, AccuracyGate).model_validate(limits) for name, limits in given.items()
            }
        except (ConfigError, OSError, AttributeError, ValidationError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"{path}: its gates cannot be read: {first}") from error


def finished_run(path: Path) -> Run:
    """Raises ConfigError where ``path`` holds no report, a damaged one, or that of a run that did not finish."""
    raw = read(path / "report.json")
    report = check(raw)
    best, row = report.artefact(report.best_id), report.row(report.best_id)
    if report.verdict == "error" or best is None or row is None:
        reason = (
            report.error.message.splitlines()[0] if report.error else "nothing was measured at its target"
        )
        raise ConfigError(
            f"{path} is no finished run ({reason}); there is nothing to compare: run its pipeline again"
        )
    packed = [a for a in raw["artifacts"] if a.get("kind") == "package" and _of(a) == best.sha256]
    scores, judged_on = _scores(path, raw, best.id)
    return Run(
        path,
        report,
        best,
        row,
        packed[0]["bytes"] if packed else None,
        _per_class(raw).get(best.id, {}),
        scores,
        judged_on,
        raw,
    )


def _of(entry: Mapping[str, Any]) -> Any:
    details = entry.get("details")
    return details.get("of") if isinstance(details, dict) else None


def _per_class(raw: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    try:
        return _CLASSES.validate_python(raw.get("per_class", {}), strict=True)
    except ValidationError:
        return {}


def _scores(path: Path, raw: Mapping[str, Any], id: str) -> tuple[Sequence[float] | None, Any]:
    """The scores that the benchmark step left, and by what its data are known; None where they are not there."""
    steps = [s for s in raw["stages"] if s["kind"] == "benchmark" and _plain(s.get("directory"))]
    if not steps:
        return None, None
    folder = path / steps[-1]["directory"]
    try:
        manifest = read_json(folder / MANIFEST)
        key, name = manifest["key"], manifest["details"].get("scores")
        judged_on = [key["digests"]["data"], key["task"], key["seed"]]
        file = folder / str(name)
        if not _plain(name) or file.stat().st_size > MOST_BYTES:
            return None, judged_on
        scores = _SCORES.validate_python(read_json(file)).get(id)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None
    return scores or None, judged_on


def _plain(name: Any) -> bool:
    """The name of something in a folder, and no way out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
