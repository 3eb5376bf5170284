"""Token classification: one class of several for each token of a text."""

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


@dataclass(frozen=True)
class TokenClassification(OutputTask):
    """Logits [batch, tokens, classes] and integer labels [batch, tokens]; cross-entropy of the tokens that count.

    Tokens labelled ``ignore_index`` count nowhere, nor do those where the model's input called ``mask`` is 0.
    ``metric``: the primary one; it has no score for each text, because texts differ in their number of tokens.
    Figures are of tokens and not of entities that span several. ``label_smoothing``: as in classification.
    """

    classes: int | None = None
    ignore_index: int = -100
    mask: str | None = None
    metric: str = "f1"
    label_smoothing: float = 0.0

    name: ClassVar[str] = "token_classification"
    class_axis: ClassVar[int | None] = 2
    rank: ClassVar[int | None] = 3
    figures: ClassVar[dict[str, MetricInfo]] = table(
        *map(share, ("f1", "accuracy", "precision", "recall", "worst_class"))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_smoothing(self.label_smoothing)

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Logits are 3-D; labels are class indices or ``ignore_index``. Raises ConfigError."""
        logits = self.answer(outputs)
        if logits.ndim != 3 or len(logits) != batch.size:
            raise ConfigError(
                f"{self.name}: the model's output is {list(logits.shape)} for a batch of {batch.size}; expected "
                f"[{batch.size}, tokens, classes]: choose another task, or let the model return logits for every token"
            )
        require_classes(logits.shape[2], self.classes, self.name)
        expected = f"[{batch.size}, {logits.shape[1]}]"
        labels = require_labels(batch, self.name, f"an integer tensor {expected}")
        if labels.shape != logits.shape[:2]:
            raise ConfigError(
                f"{self.name}: received labels {form(labels)}; expected integers {expected}, one class index a token"
            )
        if self.mask is not None:
            mask = batch.inputs.get(self.mask)
            if mask is None or mask.shape != labels.shape:
                received = (
                    f"inputs {', '.join(batch.inputs)}" if mask is None else f"{self.mask} {form(mask)}"
                )
                raise ConfigError(
                    f"{self.name}: received {received}; expected an input {self.mask!r} {expected}, as task.args.mask says"
                )
        require_indices(labels, logits.shape[2], self.name, self.ignore_index)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        logits, labels = self.answer(outputs), self.counted(batch)
        kept = (labels != self.ignore_index).sum().clamp(min=1)
        total = F.cross_entropy(
            logits.transpose(1, 2),
            labels,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return total / kept

    def counted(self, batch: Batch) -> Tensor:
        """The labels, with ``ignore_index`` at masked tokens too."""
        labels: Tensor = batch.targets.long()
        return (
            labels
            if self.mask is None
            else labels.masked_fill(batch.inputs[self.mask] == 0, self.ignore_index)
        )

    def metrics(self) -> TokenMetrics:
        return TokenMetrics(self)


class TokenMetrics:
    """``accuracy`` over tokens; ``precision``, ``recall`` and ``f1`` as means of the classes, each counting the same;
    ``worst_class``: the lowest of the classes' F1.
    """

    def __init__(self, task: TokenClassification) -> None:
        self._task = task
        self._counts = ClassCounts()

    def update(self, outputs: Outputs, batch: Batch) -> None:
        logits, labels = self._task.answer(outputs).detach(), self._task.counted(batch)
        kept = labels != self._task.ignore_index
        self._counts.add(logits.argmax(2)[kept], labels[kept], logits.shape[2])

    def compute(self) -> dict[str, float]:
        counts = self._counts
        return known(
            f1=macro(counts.f1()),
            accuracy=counts.accuracy(),
            precision=macro(counts.precision()),
            recall=macro(counts.recall()),
            worst_class=min(counts.f1().values(), default=None),
        )

    def by_class(self) -> dict[str, ByClass]:
        counts = self._counts
        return {"f1": counts.f1(), "precision": counts.precision(), "recall": counts.recall()}

    def scores(self) -> np.ndarray | None:
        return None
