"""What artefacts get right on the test split, each read in a runtime that opens it; as it is, and corrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from deploycompress.artifact import Artifact, canonical_json
from deploycompress.config.devices import LOCAL
from deploycompress.contracts import Event, Loader, MetricInfo, Note, RunContext, Runtime, figures_of
from deploycompress.data.corruptions import CorruptedLoader
from deploycompress.devices.answers import answers
from deploycompress.devices.jobs import Candidate, open_device
from deploycompress.graph.evaluation import Evaluation, evaluate_answers, evaluate_artifact
from deploycompress.graph.execution import fixed_batch_of, network_of
from deploycompress.graph.feeds import fixed_batch
from deploycompress.graph.schemes import target_reading
from deploycompress.registry import RUNTIMES


@dataclass(frozen=True)
class Judged:
    """One artefact's figures; ``corrupted``: corruption -> one evaluation a severity."""

    clean: Evaluation
    primary: MetricInfo
    corrupted: Mapping[str, Sequence[Evaluation]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """With PRIMARY_CORRUPTION, the mean over severities, left out where one of them has none."""
        found = dict(self.clean.metrics)
        for kind, each in self.corrupted.items():
            values = [e.metrics[self.primary.name] for e in each if self.primary.name in e.metrics]
            if len(values) == len(each):
                found[f"{self.primary.name}_{kind}"] = float(np.mean(values))
        return found

    @property
    def corrupted_scores(self) -> dict[str, list[float]]:
        """By the same names, one score a sample: its mean over severities. Only where the task has scores."""
        return {
            f"{self.primary.name}_{kind}": np.mean(scores, axis=0).tolist()
            for kind, each in self.corrupted.items()
            if (scores := [e.scores for e in each if e.scores is not None])
        }


def judge_artifacts(
    artifacts: Sequence[Artifact],
    context: RunContext,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
) -> tuple[dict[str, Judged], list[Note]]:
    """By artefact id; equal files that are run alike are read once, and what no runtime here reads is left out with a note."""
    known: dict[str, Judged] = {}
    found: dict[str, Judged] = {}
    notes: list[Note] = []
    for artifact in artifacts:
        same = artifact.sha256 + canonical_json(artifact.details.get("options", {}))
        if same not in known:
            name, provider = _reader_of(artifact, context)
            if name is None:
                continue
            runtime: Runtime = RUNTIMES.load(name)()
            missing = None if _place_of(artifact, context) is not None else runtime.missing()
            if missing:
                notes.append(Note("skipped", f"not judged on the test split: {missing}", artifact.id))
                continue
            how = Candidate(
                artifact.id,
                artifact.path,
                name,
                provider,
                artifact.details.get("threads", context.target.threads),
                options={**artifact.details.get("options", {}), **network_of(artifact.kind, context.model)},
            )
            known[same] = _judged(artifact, runtime, how, context, corruptions, severities)
        found[artifact.id] = known[same]
    return found, notes


def figures_with(corruptions: Sequence[str], context: RunContext) -> dict[str, MetricInfo]:
    """What is known of every metric, those under corruption among them."""
    primary = context.task.primary
    names = [f"{primary.name}_{kind}" for kind in corruptions]
    return figures_of(context.task) | {name: replace(primary, name=name) for name in names}


def _judged(
    artifact: Artifact,
    runtime: Runtime,
    how: Candidate,
    context: RunContext,
    corruptions: Sequence[str],
    severities: Sequence[int],
) -> Judged:
    own = artifact.details.get("batch")  # of what was made from a file with a fixed one
    batch = own or fixed_batch_of(artifact.main_file) or _profiled_batch(artifact)
    batch = batch or fixed_batch(context.model)

    def evaluation(loader: Loader, words: str) -> Evaluation:
        context.emit(Event("progress", f"test split{words}: {artifact.id}"))
        if (there := _place_of(artifact, context)) is not None:
            answer = partial(answers, open_device(there, context.devices), how)
            return evaluate_answers(answer, artifact.id, loader, context.task, batch)
        options = {"threads": how.threads, "provider": how.provider, **how.options}
        if (how.runtime, how.provider) == ("onnxruntime", "cpu"):
            options |= target_reading(artifact.precision, context)
        return evaluate_artifact(runtime, artifact.main_file, options, loader, context.task, batch)

    corrupted = {
        kind: [
            evaluation(CorruptedLoader(context.data.loader("test"), kind, severity), f", {kind} {severity}")
            for severity in severities
        ]
        for kind in corruptions
    }
    return Judged(evaluation(context.data.loader("test"), ""), context.task.primary, corrupted)


def _reader_of(artifact: Artifact, context: RunContext) -> tuple[str | None, str]:
    """Accuracy is the artefact's own, so it is read where the file says what is computed."""
    own = artifact.details.get("runtime")
    if own is not None:
        return own, artifact.details.get("provider", "cuda")
    if _place_of(artifact, context) is not None:
        return context.target.runtime, context.target.provider
    if artifact.kind == "checkpoint":
        opens = "checkpoint" in RUNTIMES.load(context.target.runtime).accepts
        return (context.target.runtime, context.target.provider) if opens else (None, "")
    return ("onnxruntime", "cpu") if artifact.kind == "onnx" else (None, "")


def _place_of(artifact: Artifact, context: RunContext) -> str | None:
    """The device that alone can run it, since it was built there or only there is its runtime; None: this machine."""
    target = context.target
    if target.device == LOCAL or "device" in artifact.details:
        return artifact.details.get("device")
    runtime = RUNTIMES.load(target.runtime)()
    alone = artifact.kind in runtime.accepts and runtime.missing() is not None
    return target.device if alone else None


def _profiled_batch(artifact: Artifact) -> int | None:
    """The largest batch of an engine's profile."""
    shapes = list(artifact.details.get("profile", {}).values())
    return int(shapes[0][2][0]) if shapes else None
