"""Multi-label classification: each of several labels holds for a sample or does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.data.tasks.base import OutputTask
from deploycompress.data.tasks.checks import (
    form,
    require_classes,
    require_labels,
    share,
    table,
)
from deploycompress.data.tasks.counts import ByClass, ClassCounts, known, macro
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MultiLabel(OutputTask):
    """Logits [batch, labels] and targets [batch, labels] of 0 and 1; binary cross-entropy of each label.

    A label is predicted where its probability is at least ``threshold``. ``metric``: the primary one; with
    ``exact_match`` every sample has a score, so that a gate on a drop can give an interval.
    """

    classes: int | None = None
    threshold: float = 0.5
    metric: str = "f1"

    name: ClassVar[str] = "multi_label"
    targets_are_classes: ClassVar[bool] = False  # each column is one, and any number of them hold
    figures: ClassVar[dict[str, MetricInfo]] = table(
        *map(share, ("f1", "precision", "recall", "exact_match", "worst_class"))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; expected more than 0, and less than 1")

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Logits are 2-D; targets of the same shape are 0 or 1. Raises ConfigError."""
        logits = self.answer(outputs)
        if logits.ndim != 2 or len(logits) != batch.size:
            raise ConfigError(
                f"{self.name}: the model's output is {list(logits.shape)} for a batch of {batch.size}; expected "
                f"[{batch.size}, labels]: choose another task, or let the model return logits"
            )
        require_classes(logits.shape[1], self.classes, self.name)
        expected = f"{list(logits.shape)} of 0 and 1, one column a label"
        labels = require_labels(batch, self.name, f"a tensor {expected}")
        if labels.shape != logits.shape:
            raise ConfigError(f"{self.name}: received labels {form(labels)}; expected {expected}")
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ConfigError(
                f"{self.name}: received labels from {labels.min().item():g} to {labels.max().item():g}; expected {expected}"
            )

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        logits = self.answer(outputs)
        return F.binary_cross_entropy_with_logits(logits, batch.targets.to(logits.dtype))

    def metrics(self) -> MultiLabelMetrics:
        return MultiLabelMetrics(self)


class MultiLabelMetrics:
    """``precision``, ``recall`` and ``f1`` as means of the labels, each counting the same; ``exact_match``: the share
    of samples with every label right; ``worst_class``: the lowest of the labels' F1.
    """

    def __init__(self, task: MultiLabel) -> None:
        self._task = task
        self._counts = ClassCounts()
        self._exact: list[np.ndarray] = []

    def update(self, outputs: Outputs, batch: Batch) -> None:
        logits = self._task.answer(outputs).detach()
        predicted = (logits.sigmoid() >= self._task.threshold).cpu().numpy()
        true = (batch.targets == 1).cpu().numpy()
        self._counts.add_counts((predicted & true).sum(0), predicted.sum(0), true.sum(0))
        self._exact.append((predicted == true).all(1))

    def compute(self) -> dict[str, float]:
        counts = self._counts
        return known(
            f1=macro(counts.f1()),
            precision=macro(counts.precision()),
            recall=macro(counts.recall()),
            exact_match=float(np.concatenate(self._exact).mean()),
            worst_class=min(counts.f1().values(), default=None),
        )

    def by_class(self) -> dict[str, ByClass]:
        counts = self._counts
        return {"f1": counts.f1(), "precision": counts.precision(), "recall": counts.recall()}

    def scores(self) -> np.ndarray | None:
        """With ``metric: exact_match``, 1 for a sample with every label right, else 0."""
        if self._task.metric != "exact_match":
            return None
        return np.concatenate(self._exact).astype(np.float64)
