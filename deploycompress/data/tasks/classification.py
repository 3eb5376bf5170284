"""Classification: one class of several for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5


@dataclass(frozen=True)
class Classification:
    """Logits [batch, classes] and integer labels [batch]; cross-entropy.

    ``classes``: as many as the model must have outputs; None: whatever it has. ``label_smoothing``: the share of
    the target that goes to all classes alike (Szegedy et al., "Rethinking the Inception Architecture", section 7).
    """

    classes: int | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; expected 0 or more, and less than 1"
            )

    @property
    def primary(self) -> MetricInfo:
        return MetricInfo("accuracy", higher_is_better=True, unit="share")

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Logits are 2-D; labels are integers below the number of classes. Raises ConfigError."""
        import torch

        logits, labels = outputs.main, batch.targets
        if logits.ndim != 2 or len(logits) != batch.size:
            raise ConfigError(
                f"classification: the model's first output is {list(logits.shape)} for a batch of {batch.size}; "
                f"expected [{batch.size}, classes]: choose another task, or let the model return logits"
            )
        classes = logits.shape[1]
        if self.classes is not None and classes != self.classes:
            raise ConfigError(
                f"classification: the model has {classes} outputs; expected {self.classes}, as task.args says: "
                "change model.args or task.args.classes"
            )
        if not isinstance(labels, torch.Tensor):
            received = "no labels" if labels is None else f"labels of type {type(labels).__name__}"
            raise ConfigError(
                f"classification: received {received}; expected an integer tensor [{batch.size}]: "
                "let the data source yield (inputs, labels)"
            )
        whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
        if not whole or labels.shape != (batch.size,):
            raise ConfigError(
                f"classification: received labels {str(labels.dtype).removeprefix('torch.')}{list(labels.shape)}; "
                f"expected integers [{batch.size}], one class index a sample"
            )
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise ConfigError(
                f"classification: received labels from {int(labels.min())} to {int(labels.max())}; expected 0 to "
                f"{classes - 1}, as the model has {classes} outputs: change model.args, or number the classes from 0"
            )

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        return F.cross_entropy(outputs.main, batch.targets.long(), label_smoothing=self.label_smoothing)

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics()


class ClassificationMetrics:
    """``accuracy``, ``top5`` with more than five classes, and ``worst_class``: the recall of the worst class.

    Counted here and not by torchmetrics: it is three lines, and importing torchmetrics takes some seconds in
    each step's process. The tests compare the two.
    """

    def __init__(self) -> None:
        self._ranks: list[np.ndarray] = []  # how many classes are put before the true one, [samples]
        self._labels: list[np.ndarray] = []
        self._classes = 0

    def update(self, outputs: Outputs, batch: Batch) -> None:
        logits, labels = outputs.main.detach(), batch.targets.long()
        own = logits.gather(1, labels[:, None])
        ranks = (logits > own).sum(1)
        # Among equal logits argmax takes the first class, and so does a runtime: the others are not correct.
        first = logits.argmax(1) == labels
        self._ranks.append(np.where(first.cpu().numpy(), 0, ranks.cpu().numpy().clip(min=1)))
        self._labels.append(labels.cpu().numpy())
        self._classes = logits.shape[1]

    def compute(self) -> dict[str, float]:
        ranks = np.concatenate(self._ranks)
        figures = {"accuracy": float((ranks == 0).mean())}
        if self._classes > TOP:
            figures["top5"] = float((ranks < TOP).mean())
        figures["worst_class"] = min(self.per_class().values())
        return figures

    def per_class(self) -> dict[str, float]:
        """Recall of every class that has samples, by its number."""
        labels, correct = np.concatenate(self._labels), self.correct()
        return {str(c): float(correct[labels == c].mean()) for c in np.unique(labels)}

    def scores(self) -> np.ndarray | None:
        """1 for a sample that is classified right, else 0, in order."""
        return self.correct().astype(np.float64)

    def correct(self) -> np.ndarray:
        correct: np.ndarray = np.concatenate(self._ranks) == 0
        return correct
