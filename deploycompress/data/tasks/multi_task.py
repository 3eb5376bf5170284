"""Several tasks of one model, each on an output and a target of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from deploycompress.config.schema import TaskConfig
from deploycompress.contracts import Batch, ClassMetrics, MetricInfo, Metrics, Outputs, Task, figures_of
from deploycompress.data.tasks.aspects import Aspect, aspects_of
from deploycompress.data.tasks.checks import require_metric
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "multi_task"
KEYS = ("task", "args", "output", "target", "weight")


@dataclass(frozen=True)
class Head:
    """One task of several: which output and which target are its, and how much its loss counts."""

    task: Task
    output: str
    target: str
    weight: float

    def of(self, name: str, outputs: Outputs, batch: Batch) -> tuple[Outputs, Batch]:
        """What this head's task sees: its output first, all others after it, and its own targets."""
        if self.output not in outputs.tensors:
            raise ConfigError(
                f"{NAME}, head {name}: the model has no output {self.output!r}; received "
                f"{', '.join(outputs.tensors)}: set {name}.output to one of these"
            )
        tensors = {self.output: outputs.tensors[self.output], **outputs.tensors}
        return Outputs(tensors, outputs.features), replace(batch, targets=self._targets(name, batch))

    def batch(self, name: str, batch: Batch) -> Batch:
        """With this head's targets; without any where there are none."""
        return batch if batch.targets is None else replace(batch, targets=self._targets(name, batch))

    def _targets(self, name: str, batch: Batch) -> Any:
        import torch

        given = batch.targets
        rows = given if isinstance(given, (list, tuple)) else [given]
        for row in rows:
            if not isinstance(row, Mapping) or self.target not in row:
                received = f"a dict with {', '.join(row)}" if isinstance(row, Mapping) else type(row).__name__
                raise ConfigError(
                    f"{NAME}, head {name}: received {received if row is not None else 'no'} targets; expected a dict "
                    f"with {self.target!r}, as the data yield (inputs, {{{self.target!r}: ...}}): set {name}.target"
                )
        if isinstance(given, Mapping):
            return given[self.target]
        values = [row[self.target] for row in rows]  # a dict for each sample
        try:
            tensors = [torch.as_tensor(value) for value in values]
        except (TypeError, ValueError, RuntimeError):
            return values
        return torch.stack(tensors) if len({t.shape for t in tensors}) == 1 else values


@dataclass(frozen=True)
class MultiTask:
    """``{heads: {NAME: {task: classification, output: ..., target: ..., weight: 1.0, args: {...}}}}``.

    The loss is the sum of the heads' losses by weight. ``output`` and ``target`` are the head's name where they are
    not given; targets are dicts by name. Metrics are called HEAD.METRIC; ``metric`` is the primary one, where it is
    not given that of the first head.
    """

    heads: Mapping[str, Mapping[str, Any]]
    metric: str | None = None
    opened: Mapping[str, Head] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.heads:
            raise ValueError("heads is empty; expected at least one, as {age: {task: regression}}")
        object.__setattr__(self, "opened", {name: _opened(name, given) for name, given in self.heads.items()})
        if self.metric is not None:
            require_metric(NAME, self.metric, self.figures)

    @property
    def figures(self) -> dict[str, MetricInfo]:
        return {
            f"{name}.{info.name}": replace(info, name=f"{name}.{info.name}")
            for name, head in self.opened.items()
            for info in figures_of(head.task).values()
        }

    @property
    def primary(self) -> MetricInfo:
        first, head = next(iter(self.opened.items()))
        return self.figures[self.metric or f"{first}.{head.task.primary.name}"]

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """Those of every head."""
        return tuple(
            replace(
                of,
                name=name,
                output=of.output or head.output,
                weight=head.weight * of.weight,
                targets=partial(head.batch, name),
            )
            for name, head in self.opened.items()
            for of in aspects_of(head.task)
        )

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Every head's own check. Raises ConfigError naming the head."""
        for name, head in self.opened.items():
            try:
                head.task.check(*head.of(name, outputs, batch))
            except ConfigError as error:
                text = str(error)
                raise (
                    error if text.startswith(NAME) else ConfigError(f"{NAME}, head {name}: {text}")
                ) from error

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        losses = [
            head.weight * head.task.loss(*head.of(name, outputs, batch)) for name, head in self.opened.items()
        ]
        return sum(losses[1:], start=losses[0])

    def metrics(self) -> MultiTaskMetrics:
        return MultiTaskMetrics(self)


class MultiTaskMetrics:
    """The heads' metrics under their names; classes are those of the primary metric's head."""

    def __init__(self, task: MultiTask) -> None:
        self._task = task
        self._each: dict[str, Metrics] = {name: head.task.metrics() for name, head in task.opened.items()}

    def update(self, outputs: Outputs, batch: Batch) -> None:
        for name, metrics in self._each.items():
            metrics.update(*self._task.opened[name].of(name, outputs, batch))

    def compute(self) -> dict[str, float]:
        return {
            f"{name}.{key}": value
            for name, metrics in self._each.items()
            for key, value in metrics.compute().items()
        }

    def by_class(self) -> dict[str, dict[str, float]]:
        head, _ = self._primary
        order = [head, *(name for name in self._each if name != head)]
        tables = {name: self._each[name] for name in order}
        return {
            f"{name}.{key}": value
            for name, metrics in tables.items()
            if isinstance(metrics, ClassMetrics)
            for key, value in metrics.by_class().items()
        }

    def scores(self) -> np.ndarray | None:
        """The scores of the primary metric's head, where that is the head's own primary metric."""
        head, metric = self._primary
        return self._each[head].scores() if self._task.opened[head].task.primary.name == metric else None

    @property
    def _primary(self) -> tuple[str, str]:
        name = self._task.primary.name
        head = next(head for head in self._each if name.startswith(f"{head}."))
        return head, name.removeprefix(f"{head}.")


def _opened(name: str, given: Mapping[str, Any]) -> Head:
    """Raises ValueError when the head is not one, or its task is not."""
    from deploycompress.data.open import open_task

    if "." in name:
        raise ValueError(
            f"head {name!r} has a dot in its name, which stands between head and metric; use another"
        )
    if not isinstance(given, Mapping) or "task" not in given or (odd := given.keys() - set(KEYS)):
        wrong = (
            f"unknown {', '.join(sorted(odd))}"
            if isinstance(given, Mapping) and "task" in given
            else f"{given!r}"
        )
        raise ValueError(
            f"head {name}: received {wrong}; expected a mapping with task, and any of {', '.join(KEYS[1:])}"
        )
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
        raise ValueError(f"head {name}: weight is {weight!r}; expected a number above 0")
    try:
        task = open_task(TaskConfig(name=given["task"], args=given.get("args", {})))
    except ConfigError as error:
        raise ValueError(f"head {name}: {error}") from error
    return Head(task, given.get("output", name), given.get("target", name), float(weight))
