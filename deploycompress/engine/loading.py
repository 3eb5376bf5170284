"""A checkpoint of a finished run, as the torch module it is: what ``deploycompress.load_pruned`` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from deploycompress.artifact import MANIFEST, Artifact, damaged, read_json
from deploycompress.config import yaml_file
from deploycompress.config.document import in_order
from deploycompress.config.schema import ModelConfig, Network
from deploycompress.config.validation import validate
from deploycompress.config.wording import listed, unknown
from deploycompress.engine.plan import MODEL
from deploycompress.engine.record import read_artifacts
from deploycompress.engine.worker import JOBS
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model import checkpoint
from deploycompress.model.source import SourceModel
from deploycompress.registry import is_own

CONFIG, RECORD = "config.yaml", "run.json"


def load_pruned(
    place: str | os.PathLike[str], step: str | None = None, *, trust_code: bool = False
) -> nn.Module:
    """See ``deploycompress.load_pruned``."""
    path = Path(place).expanduser().absolute()
    if (path / checkpoint.ARCHITECTURE).is_file():
        if step is not None:
            raise ConfigError(f"{path} is one checkpoint already; step={step!r} goes with its run directory")
        return _load(path, _run_dir_around(path), trust_code)
    if not (path / CONFIG).is_file() or not (path / RECORD).is_file():
        raise ConfigError(
            f"{path} is not a run directory{'' if path.is_dir() else ' (it does not exist)'}: expected one with "
            f"{CONFIG} and {RECORD} in it, such as runs/<name>, or a checkpoint folder in one"
        )
    artifact = _chosen(path, step)
    reason = damaged(artifact)
    if reason is not None:
        raise StageFailed(
            f"{artifact.path} is damaged: {reason}; run the pipeline again to have it made anew"
        )
    return _load(artifact.path, path, trust_code)


def _run_dir_around(folder: Path) -> Path:
    found = next((parent for parent in folder.parents if (parent / CONFIG).is_file()), None)
    if found is None:
        raise ConfigError(
            f"{folder} is a checkpoint outside of a run directory, so which model it is of is not known; "
            f"expected a {CONFIG} in a folder around it: load it where the run left it"
        )
    return found


# ---------------------------------------------------------------- which one


def _chosen(run_dir: Path, wanted: str | None) -> Artifact:
    """The checkpoint of that step, else the last one; what was undone does not count. Raises ConfigError."""
    steps = _steps(run_dir)
    states = {step["id"]: step["state"] for step in steps}
    made: dict[str, Artifact] = {}
    for step in steps:
        if step["state"] == "done" and os.path.isfile(run_dir / step["directory"] / MANIFEST):
            artifacts = _artifacts(run_dir / step["directory"])
            best = next((a for a in artifacts if a.kind == "checkpoint"), None)
            if best is not None and (not step["undone"] or step["id"] == wanted):
                made[step["id"]] = best
    if wanted is None:
        if not made:
            told = listed(f"{id} {state}" for id, state in states.items())
            raise ConfigError(f"{run_dir} holds no checkpoint ({told}); look at its log.txt and run it again")
        return list(made.values())[-1]
    if wanted in made:
        return made[wanted]
    if wanted not in states:
        raise ConfigError(f"{run_dir}: {unknown('step', wanted, states)}")
    why = "holds no checkpoint" if states[wanted] == "done" else f"is not done in this run ({states[wanted]})"
    raise ConfigError(f"{run_dir}: step {wanted} {why}; steps with one: {listed(made) or 'none'}")


def _steps(run_dir: Path) -> list[Mapping[str, Any]]:
    """The run's record of its steps, in order."""
    try:
        steps = read_json(run_dir / RECORD)["steps"]
        read: list[Mapping[str, Any]] = [
            {name: step[name] for name in ("id", "directory", "state", "undone")} for step in steps
        ]
        for text in (value for step in read for value in step.values()):
            if not isinstance(text, str):
                raise TypeError(f"received {text!r}, expected text")
        outside = [
            step["directory"] for step in read if "/" in step["directory"] or step["directory"] == ".."
        ]
        if outside:
            raise ValueError(f"{outside[0]!r} is no folder of the run")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{run_dir / RECORD} cannot be read ({type(error).__name__}: {error}); run the pipeline again"
        ) from error
    return read


def _artifacts(folder: Path) -> tuple[Artifact, ...]:
    """Those of a step whose record may come from anywhere. Raises StageFailed where it is damaged."""
    try:
        return read_artifacts(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StageFailed(
            f"{folder / MANIFEST} cannot be read ({type(error).__name__}: {error}); run the pipeline again"
        ) from error


# ---------------------------------------------------------------- put together


def _load(folder: Path, run_dir: Path, trust_code: bool) -> nn.Module:
    config, seed, others = _model_config(run_dir / CONFIG)
    code = [build for build in (config.build, *(other.build for other in others)) if not is_own(build)]
    if code and not trust_code:
        raise ConfigError(
            f"{run_dir / CONFIG} builds its model with {code[0]!r}, which is code of somebody's own: where you trust it, as "
            "that of a run of yours, load with trust_code=True"
        )
    model = SourceModel(config, seed, _search_path(run_dir) if trust_code else (), others)
    try:
        return checkpoint.load(folder, model)
    except StageFailed as error:
        raise StageFailed(
            f"{error} (the run built its model with {config.build}: if that code is not what it was, load with the "
            "code of then, or run the pipeline again)"
        ) from error


def _model_config(path: Path) -> tuple[ModelConfig, int, list[Network]]:
    """``model:``, the seed and the students: data and weights of the run may be on another machine."""
    document = yaml_file.load(path)
    if not isinstance(document.data, dict) or "model" not in document.data:
        raise ConfigError(f"{path} has no model: in it; expected the {CONFIG} that a run writes")
    config = validate(ModelConfig, document, ("model",))
    if config is None:
        raise ConfigError(in_order(document.problems))
    seed = document.data.get("seed", 0)
    if not isinstance(seed, int):
        raise ConfigError(f"{path}: seed: received {seed!r}, expected a whole number")
    return config, seed, _students(document.data.get("stages"))


def _students(stages: Any) -> list[Network]:
    """The networks that a stage has put in the place of the model."""
    steps = stages if isinstance(stages, list) else []
    bodies = [body for step in steps if isinstance(step, dict) for body in step.values()]
    given = [body.get("student") for body in bodies if isinstance(body, dict)]
    try:
        return [Network.model_validate(student) for student in given if student is not None]
    except ValidationError as error:
        raise ConfigError(f"a student in the run's {CONFIG} is none: {error.errors()[0]['msg']}") from error


def _search_path(run_dir: Path) -> list[Path]:
    """Where the run found the user's code, as far as that is there still, and where we are."""
    try:
        recorded = read_json(run_dir / JOBS / f"{MODEL}.json")["search_path"]
    except (OSError, ValueError, KeyError):
        recorded = []
    return [*(Path(p) for p in recorded if os.path.isdir(p)), Path.cwd()]
