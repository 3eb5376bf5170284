"""The task's metrics of an artefact, run by the runtime that will run it in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deploycompress.contracts import Batch, ClassMetrics, Outputs, Runtime, Task, targets_are_classes
from deploycompress.errors import DeployCompressError, StageFailed
from deploycompress.graph.execution import inspect_onnx, select
from deploycompress.graph.feeds import regroup
from deploycompress.model.parity import to_numpy


@dataclass(frozen=True)
class Evaluation:
    """Figures of one artefact over one split."""

    metrics: Mapping[str, float]
    scores: tuple[float, ...] | None  # one a sample, in order
    by_class: Mapping[str, Mapping[str, float]]  # figure -> class -> value; empty where there are no classes
    samples: int

    @property
    def per_class(self) -> Mapping[str, float]:
        """The classes' first figure, which is the one that a gate on the worst class guards."""
        return next(iter(self.by_class.values()), {})


def evaluate_artifact(
    runtime: Runtime,
    path: Path,
    options: Mapping[str, Any],
    loader: Iterable[Batch],
    task: Task,
    batch: int | None,
) -> Evaluation:
    """Run every sample of ``loader`` through the artefact; ``batch`` is its batch size where that is fixed.

    Raises StageFailed when it does not run, or gives values that are not finite; ConfigError when outputs and
    labels do not fit the task.
    """
    if path.suffix == ".onnx":
        inspect_onnx(path)
    metrics = task.metrics()
    classes: list[int] = []
    samples = 0
    try:
        with runtime.open(path, options) as session:
            for real, inputs in regroup(loader, batch):
                session.bind(select(to_numpy(inputs), session.inputs, path))()
                found = {k: torch.from_numpy(v)[: real.size or None] for k, v in session.fetch().items()}
                _require_finite(found, path)
                outputs = Outputs(found)
                task.check(outputs, real)
                metrics.update(outputs, real)
                samples += next(iter(real.inputs.values())).shape[0]
                classes.extend(_classes(real) if targets_are_classes(task) else [])
    except DeployCompressError:
        raise
    except Exception as error:  # a runtime may raise anything
        raise StageFailed(f"{path.name} does not run: {type(error).__name__}: {error}") from error
    scores = metrics.scores()
    listed = None if scores is None else tuple(float(s) for s in scores)
    by_class = metrics.by_class() if isinstance(metrics, ClassMetrics) else _by_class(listed, classes)
    return Evaluation(metrics.compute(), listed, by_class, samples)


def _require_finite(outputs: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in outputs.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageFailed(f"{path.name}: output {name} has NaN or infinite values on real data")


def _classes(batch: Batch) -> list[int]:
    targets = batch.targets
    if isinstance(targets, torch.Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        return [int(t) for t in targets]
    return []


def _by_class(scores: tuple[float, ...] | None, classes: list[int]) -> dict[str, dict[str, float]]:
    """The mean score by target class, for metrics that do not tell the classes apart themselves."""
    if not scores or len(scores) != len(classes):
        return {}
    of: dict[int, list[float]] = defaultdict(list)
    for target, score in zip(classes, scores, strict=True):
        of[target].append(score)
    return {"score": {str(target): sum(of[target]) / len(of[target]) for target in sorted(of)}}
