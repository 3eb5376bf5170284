"""Ranking by the probability of an event, as in click prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.data.tasks.base import OutputTask
from deploycompress.data.tasks.checks import form, require_labels, share, table
from deploycompress.data.tasks.counts import known
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ranking(OutputTask):
    """Logits [batch] or [batch, 1] and targets [batch] of 0 and 1; binary cross-entropy.

    ``metric``: the primary one; with ``log_loss`` every sample has a score, so that a gate on a rise can give an
    interval. AUC is a figure of all pairs of samples and has none.
    """

    metric: str = "auc"

    name: ClassVar[str] = "ranking"
    figures: ClassVar[dict[str, MetricInfo]] = table(
        share("auc"), MetricInfo("log_loss", higher_is_better=False, unit="")
    )

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """One logit a sample; targets are 0 or 1. Raises ConfigError."""
        logits = self.answer(outputs)
        if tuple(logits.shape) not in ((batch.size,), (batch.size, 1)):
            raise ConfigError(
                f"{self.name}: the model's output is {list(logits.shape)} for a batch of {batch.size}; expected "
                f"[{batch.size}] or [{batch.size}, 1], one logit a sample: choose another task, or change model.args"
            )
        expected = f"[{batch.size}] of 0 and 1"
        labels = require_labels(batch, self.name, f"a tensor {expected}")
        if tuple(labels.shape) not in ((batch.size,), (batch.size, 1)):
            raise ConfigError(
                f"{self.name}: received labels {form(labels)}; expected {expected}, one a sample"
            )
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ConfigError(
                f"{self.name}: received labels from {labels.min().item():g} to {labels.max().item():g}; expected {expected}"
            )

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return _losses(self.answer(outputs), batch.targets).mean()

    def metrics(self) -> RankingMetrics:
        return RankingMetrics(self)


class RankingMetrics:
    """``auc``: the area under the ROC curve, which is the share of (1, 0) pairs in the right order, ties counting half
    (Hanley, McNeil, "The meaning and use of the area under a ROC curve", 1982); left out where one kind is missing.
    ``log_loss``: the mean binary cross-entropy, in nats.
    """

    def __init__(self, task: Ranking) -> None:
        self._task = task
        self._logits: list[np.ndarray] = []
        self._true: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []

    def update(self, outputs: Outputs, batch: Batch) -> None:
        logits = self._task.answer(outputs).detach().float().reshape(-1)
        self._logits.append(logits.cpu().numpy())
        self._true.append((batch.targets.reshape(-1) == 1).cpu().numpy())
        self._losses.append(_losses(logits, batch.targets).cpu().double().numpy())

    def compute(self) -> dict[str, float]:
        return known(
            auc=_auc(np.concatenate(self._logits), np.concatenate(self._true)),
            log_loss=float(np.concatenate(self._losses).mean()),
        )

    def scores(self) -> np.ndarray | None:
        """With ``metric: log_loss``, every sample's, in order."""
        return np.concatenate(self._losses) if self._task.metric == "log_loss" else None


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    import torch.nn.functional as F

    flat = logits.reshape(-1)
    return F.binary_cross_entropy_with_logits(flat, targets.reshape(-1).to(flat.dtype), reduction="none")


def _auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """By the rank sum of the positives; equal scores share the mean of their ranks."""
    positives, total = int(positive.sum()), len(positive)
    if positives in (0, total):
        return None
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (total - positives)))
