"""Regression: one or several real numbers for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.data.tasks.base import OutputTask
from deploycompress.data.tasks.checks import form, require_labels, table
from deploycompress.data.tasks.counts import known
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["mse", "mae", "huber"]


@dataclass(frozen=True)
class Regression(OutputTask):
    """Outputs and targets of one shape, [batch] or [batch, ...]; [batch, 1] and [batch] go together.

    ``minimise``: the squared error, the absolute error, or Huber's loss (quadratic below 1, linear above).
    ``metric``: the primary one; with ``mae`` every sample has a score, so that a gate on a rise can give an interval.
    """

    minimise: Kind = "mse"
    metric: str = "mae"

    name: ClassVar[str] = "regression"
    targets_are_classes: ClassVar[bool] = False
    figures: ClassVar[dict[str, MetricInfo]] = table(
        MetricInfo("mae", higher_is_better=False, unit=""),
        MetricInfo("rmse", higher_is_better=False, unit=""),
        MetricInfo("r2", higher_is_better=True, unit=""),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minimise not in get_args(Kind):
            raise ValueError(f"minimise is {self.minimise!r}; expected {', '.join(get_args(Kind))}")

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Targets are finite numbers of the outputs' shape. Raises ConfigError."""
        answer = self.answer(outputs)
        if answer.ndim < 1 or len(answer) != batch.size or not answer.is_floating_point():
            raise ConfigError(
                f"{self.name}: the model's output is {form(answer)} for a batch of {batch.size}; expected numbers "
                f"[{batch.size}] or [{batch.size}, ...]"
            )
        labels = require_labels(batch, self.name, f"a tensor of numbers {list(answer.shape)}")
        if _columns(labels).shape != _columns(answer).shape:
            raise ConfigError(
                f"{self.name}: received targets {form(labels)}; expected numbers {list(answer.shape)}, as the model "
                "gives them: change model.args or the data"
            )
        if not bool(labels.isfinite().all()):
            raise ConfigError(
                f"{self.name}: received NaN or Inf among the targets; repair or leave out such samples"
            )

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        answer = _columns(self.answer(outputs))
        true = _columns(batch.targets).to(answer.dtype)
        if self.minimise == "mse":
            return F.mse_loss(answer, true)
        return F.l1_loss(answer, true) if self.minimise == "mae" else F.huber_loss(answer, true)

    def metrics(self) -> RegressionMetrics:
        return RegressionMetrics(self)


class RegressionMetrics:
    """``mae``, ``rmse`` over all numbers, and ``r2``, the mean over columns of 1 - residual / total sum of squares.

    R2 is left out where a column of the targets does not vary. The sums are taken about the first sample, in float64,
    so that targets far from zero lose nothing.
    """

    def __init__(self, task: Regression) -> None:
        self._task = task
        self._absolute: list[np.ndarray] = []  # mean absolute error of every sample
        self._origin: np.ndarray | None = None
        self._residual: np.ndarray | float = 0.0  # sums over samples, [columns]
        self._sum: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0

    def update(self, outputs: Outputs, batch: Batch) -> None:
        answer, true = (
            _columns(values.detach()).cpu().double().numpy()
            for values in (self._task.answer(outputs), batch.targets)
        )
        if self._origin is None:
            self._origin = true[0]
        self._absolute.append(np.abs(answer - true).mean(1))
        self._residual = self._residual + np.square(answer - true).sum(0)
        self._sum = self._sum + (true - self._origin).sum(0)
        self._squares = self._squares + np.square(true - self._origin).sum(0)

    def compute(self) -> dict[str, float]:
        absolute = np.concatenate(self._absolute)
        residual, total = np.asarray(self._residual), self._squares - np.square(self._sum) / len(absolute)
        varies = bool((np.asarray(total) > 0).all())
        return known(
            mae=float(absolute.mean()),
            rmse=float(np.sqrt(residual.mean() / len(absolute))),
            r2=float((1 - residual / total).mean()) if varies else None,
        )

    def scores(self) -> np.ndarray | None:
        """With ``metric: mae``, the absolute error of every sample (the mean of its numbers), in order."""
        return np.concatenate(self._absolute) if self._task.metric == "mae" else None


def _columns(values: Tensor) -> Tensor:
    """[batch] or [batch, ...] -> [batch, numbers]."""
    return values.reshape(len(values), -1)
