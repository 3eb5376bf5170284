"""The whole chain once, untrained and with a few inputs, before anything is paid for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from deploycompress.artifact import Artifact, canonical_json
from deploycompress.contracts import Event, RunContext
from deploycompress.engine.plan import Step
from deploycompress.engine.record import signed
from deploycompress.errors import DeployCompressError, Interrupted, StageFailed


def rehearse(
    steps: tuple[Step, ...],
    workdir: Path,
    context: RunContext,
    begins: Callable[[Step], None] = lambda step: None,
) -> None:
    """Run every step's stage in this process; raises the first error, naming the step that would fail.

    ``begins`` is told each step before it.
    """
    made: dict[str, tuple[Artifact, ...]] = {}
    for number, step in enumerate(steps):
        begins(step)
        started = time.monotonic()
        inputs = {name: artifacts_for(step, name, made) for name in step.sources}
        folder = workdir / step.directory
        folder.mkdir(parents=True)
        try:
            outcome = step.stage.run(inputs, folder, context)
            step.stage.ensures(inputs, outcome, context)
        except Interrupted:
            raise
        except DeployCompressError as error:
            raise type(error)(f"rehearsal: step {step.id} would fail: {error}") from error
        made[step.id] = signed(outcome.artifacts, step.id) or inputs.get("source", ())
        figures = {"seconds": time.monotonic() - started}
        context.emit(Event("decision", f"{step.id} works", figures, (number + 1) / len(steps)))


def artifacts_for(step: Step, name: str, made: dict[str, tuple[Artifact, ...]]) -> tuple[Artifact, ...]:
    """What ``step`` reads as its input ``name``: only kinds it accepts, each artefact once.

    Raises StageFailed where its one source gave nothing of the kind (a package alone, for example), ConfigError for an
    ONNX file that the safe reader refuses: no library opens it before.
    """
    source = step.sources[name]
    if isinstance(source, Path):
        if source.suffix == ".onnx":
            from deploycompress.graph.execution import inspect_onnx

            inspect_onnx(source)
        return (Artifact.of(source.stem, "onnx" if source.suffix == ".onnx" else "checkpoint", source),)
    found: dict[tuple[str, str], Artifact] = {}
    for id in source:
        for artifact in made[id]:
            if artifact.kind in step.stage.accepts:
                # Equal files that are meant to be run in another way are not the same.
                run = {key: artifact.details.get(key) for key in ("runtime", "threads", "options")}
                found.setdefault((artifact.sha256, canonical_json(run)), artifact)
    if name == "source" and not found and len(source) == 1:
        reads, made_there = " or ".join(sorted(step.stage.accepts)), {a.kind for a in made[source[0]]}
        raise StageFailed(
            f"{step.id} reads {reads}, and {source[0]} made {' and '.join(sorted(made_there)) or 'nothing'} this time; "
            "name an earlier step with `from`"
        )
    return tuple(found.values())
