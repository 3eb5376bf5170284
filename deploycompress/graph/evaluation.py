"""The task's metrics of an artefact, run by the runtime that will run it in use."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploycompress.contracts import Batch, ClassMetrics, Outputs, Runtime, Task, targets_are_classes
from deploycompress.errors import DeployCompressError, StageFailed
from deploycompress.graph.execution import Feed, inspect_onnx, select
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

    def answer(feeds: Iterator[Feed]) -> Iterator[Mapping[str, np.ndarray]]:
        for feed in feeds:
            session.bind(select(feed, session.inputs, path))()
            yield session.fetch()

    try:
        with runtime.open(path, options) as session:
            return evaluate_answers(answer, path.name, loader, task, batch)
    except DeployCompressError:
        raise
    except Exception as error:  # a runtime may raise anything
        raise StageFailed(f"{path.name} does not run: {type(error).__name__}: {error}") from error


def evaluate_answers(
    answer: Callable[[Iterator[Feed]], Iterable[Mapping[str, np.ndarray]]],
    name: str,
    loader: Iterable[Batch],
    task: Task,
    batch: int | None,
) -> Evaluation:
    """The task's metrics of what ``answer`` gives for every sample of ``loader``, wherever that is run.

    ``answer`` may read several feeds before it gives the outputs of the first. Raises as ``evaluate_artifact`` does.
    """
    metrics = task.metrics()
    classes: list[int] = []
    samples = 0
    read: deque[Batch] = deque()

    def feeds() -> Iterator[Feed]:
        for real, inputs in regroup(loader, batch):
            read.append(real)
            yield to_numpy(inputs)

    for outputs in answer(feeds()):
        real = read.popleft()
        found = {k: torch.from_numpy(v)[: real.size or None] for k, v in outputs.items()}
        _require_finite(found, name)
        given = Outputs(found)
        task.check(given, real)
        metrics.update(given, real)
        samples += next(iter(real.inputs.values())).shape[0]
        classes.extend(_classes(real) if targets_are_classes(task) else [])
    scores = metrics.scores()
    listed = None if scores is None else tuple(float(s) for s in scores)
    by_class = metrics.by_class() if isinstance(metrics, ClassMetrics) else _by_class(listed, classes)
    return Evaluation(metrics.compute(), listed, by_class, samples)


def _require_finite(outputs: Mapping[str, torch.Tensor], artefact: str) -> None:
    for name, tensor in outputs.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageFailed(f"{artefact}: output {name} has NaN or infinite values on real data")


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
