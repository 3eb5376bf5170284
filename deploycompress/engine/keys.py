"""The key of a step: everything that, changed, would change its result."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deploycompress import __version__
from deploycompress.artifact import Artifact
from deploycompress.config.schema import PipelineConfig
from deploycompress.contracts import RunContext
from deploycompress.engine.plan import Step

SCHEMA = 1


def step_key(
    step: Step,
    config: PipelineConfig,
    inputs: Mapping[str, tuple[Artifact, ...]],
    digests: Mapping[str, str],
    context: RunContext,
) -> dict[str, Any]:
    """The key document of one step; its digest names the step in the store.

    ``digests``: of the model, the data and the user's code, as the 00-model step found them.
    """
    reads = step.stage.reads()
    return {
        "schema": SCHEMA,
        "stage": step.stage_name,
        "stage_version": step.stage.version,
        "config": step.stage.config.model_dump(mode="json", exclude=step.stage.incidental or None),
        "inputs": {name: [_identity(a) for a in artifacts] for name, artifacts in inputs.items()},
        "target": config.target.model_dump(mode="json") if "target" in reads else None,
        "gates": {k: g.model_dump(mode="json") for k, g in config.gates.items()}
        if "gates" in reads
        else None,
        "depends": dict(step.stage.depends(context)),
        "task": config.task.model_dump(mode="json"),
        "seed": config.seed,
        "digests": dict(digests),
        "libraries": {name: installed(name) for name in step.stage.libraries},
    }


def _identity(artifact: Artifact) -> Any:
    """Its digest; with how it is to be run, where it was made for one way of that."""
    run = {key: artifact.details[key] for key in ("runtime", "threads", "options") if key in artifact.details}
    return [artifact.sha256, run] if run else artifact.sha256


def rehearsal_fact(
    config: PipelineConfig, steps: tuple[Step, ...], digests: Mapping[str, str]
) -> dict[str, Any]:
    """What it means that the rehearsal passed: the whole configuration with these versions."""
    libraries = sorted({name for step in steps for name in step.stage.libraries})
    return {
        "rehearsal": SCHEMA,
        "config": config.model_dump(mode="json", exclude={"name"}),
        "digests": dict(digests),
        "libraries": {name: installed(name) for name in libraries} | {"deploycompress": __version__},
    }


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
