"""Classification: one class of several for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.data.tasks.base import OutputTask
from deploycompress.data.tasks.checks import (
    form,
    require_classes,
    require_indices,
    require_labels,
    require_smoothing,
    share,
    table,
)
from deploycompress.data.tasks.counts import ByClass, ClassCounts, known, macro
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5


@dataclass(frozen=True)
class Classification(OutputTask):
    """Logits [batch, classes] and integer labels [batch]; cross-entropy. Images, sounds, texts and table rows alike.

    ``classes``: as many as the model must have outputs; None: whatever it has. ``label_smoothing``: the share of
    the target that goes to all classes alike (Szegedy et al., "Rethinking the Inception Architecture", section 7).
    """

    classes: int | None = None
    label_smoothing: float = 0.0
    metric: str = "accuracy"

    name: ClassVar[str] = "classification"
    class_axis: ClassVar[int | None] = 1
    rank: ClassVar[int | None] = 2
    figures: ClassVar[dict[str, MetricInfo]] = table(
        *map(share, ("accuracy", "top5", "precision", "recall", "f1", "worst_class"))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_smoothing(self.label_smoothing)

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Logits are 2-D; labels are integers below the number of classes. Raises ConfigError."""
        logits = self.answer(outputs)
        if logits.ndim != 2 or len(logits) != batch.size:
            which = "first output" if self.output is None else f"output {self.output}"
            raise ConfigError(
                f"{self.name}: the model's {which} is {list(logits.shape)} for a batch of {batch.size}; expected "
                f"[{batch.size}, classes]: choose another task, or let the model return logits"
            )
        require_classes(logits.shape[1], self.classes, self.name)
        labels = require_labels(batch, self.name, f"an integer tensor [{batch.size}]")
        if labels.shape != (batch.size,):
            raise ConfigError(
                f"{self.name}: received labels {form(labels)}; expected integers [{batch.size}], one class index a sample"
            )
        require_indices(labels, logits.shape[1], self.name)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        logits = self.answer(outputs)
        return F.cross_entropy(logits, batch.targets.long(), label_smoothing=self.label_smoothing)

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self)


class ClassificationMetrics:
    """``accuracy``, ``top5`` with more than five classes, and ``precision``, ``recall`` and ``f1`` as means of the
    classes, each counting the same (macro); ``worst_class``: the recall of the worst class.
    """

    def __init__(self, task: Classification) -> None:
        self._task = task
        self._ranks: list[np.ndarray] = []  # how many classes are put before the true one, [samples]
        self._counts = ClassCounts()
        self._classes = 0

    def update(self, outputs: Outputs, batch: Batch) -> None:
        logits, labels = self._task.answer(outputs).detach(), batch.targets.long()
        own = logits.gather(1, labels[:, None])
        ranks = (logits > own).sum(1)
        # Among equal logits argmax takes the first class, and so does a runtime: the others are not correct.
        predicted = logits.argmax(1)
        first = predicted == labels
        self._ranks.append(np.where(first.cpu().numpy(), 0, ranks.cpu().numpy().clip(min=1)))
        self._classes = logits.shape[1]
        self._counts.add(predicted, labels, self._classes)

    def compute(self) -> dict[str, float]:
        ranks, recall = np.concatenate(self._ranks), self._counts.recall()
        return known(
            accuracy=float((ranks == 0).mean()),
            top5=float((ranks < TOP).mean()) if self._classes > TOP else None,
            precision=macro(self._counts.precision()),
            recall=macro(recall),
            f1=macro(self._counts.f1()),
            worst_class=min(recall.values()),
        )

    def by_class(self) -> dict[str, ByClass]:
        counts = self._counts
        return {"recall": counts.recall(), "precision": counts.precision(), "f1": counts.f1()}

    def scores(self) -> np.ndarray | None:
        """1 for a sample that is right (within the first five, with ``metric: top5``), else 0, in order."""
        within = {"accuracy": 1, "top5": TOP}.get(self._task.metric)
        if within is None or within >= self._classes:
            return None
        return (np.concatenate(self._ranks) < within).astype(np.float64)
