"""Semantic segmentation: one class of several for each pixel."""

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
class Segmentation(OutputTask):
    """Logits [batch, classes, height, width] and integer labels [batch, height, width]; cross-entropy of the pixels.

    Logits of another size than the labels, as SegFormer's, are brought to it by bilinear interpolation. Pixels
    labelled ``ignore_index`` count nowhere. An output called ``auxiliary``, as torchvision's segmentation models
    have one, joins the loss with ``auxiliary_weight``. ``metric``: the primary one; it has no score for each image,
    because mIoU is a figure of all pixels together. ``label_smoothing``: as in classification.
    """

    classes: int | None = None
    ignore_index: int = 255
    metric: str = "miou"
    auxiliary: str = "aux"
    auxiliary_weight: float = 0.5
    label_smoothing: float = 0.0

    name: ClassVar[str] = "segmentation"
    class_axis: ClassVar[int | None] = 1
    rank: ClassVar[int | None] = 4
    figures: ClassVar[dict[str, MetricInfo]] = table(*map(share, ("miou", "pixel_accuracy", "worst_class")))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_smoothing(self.label_smoothing)

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Logits are 4-D; labels are class indices or ``ignore_index``. Raises ConfigError."""
        logits = self.answer(outputs)
        if logits.ndim != 4 or len(logits) != batch.size or logits.shape[1] < 2:
            raise ConfigError(
                f"{self.name}: the model's output is {list(logits.shape)} for a batch of {batch.size}; expected "
                f"[{batch.size}, classes, height, width] with at least 2 classes: choose another task, or let the "
                "model return logits for every pixel (a background is a class)"
            )
        require_classes(logits.shape[1], self.classes, self.name)
        labels = require_labels(batch, self.name, f"an integer tensor [{batch.size}, height, width]")
        if labels.ndim != 3 or len(labels) != batch.size:
            raise ConfigError(
                f"{self.name}: received labels {form(labels)}; expected integers [{batch.size}, height, width], one class "
                "index a pixel"
            )
        require_indices(labels, logits.shape[1], self.name, self.ignore_index)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        found = self._pixels_loss(self.answer(outputs), batch)
        if self.auxiliary in outputs.tensors and self.auxiliary_weight:
            found = found + self.auxiliary_weight * self._pixels_loss(outputs.tensors[self.auxiliary], batch)
        return found

    def _pixels_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        labels = batch.targets.long()
        kept = (labels != self.ignore_index).sum().clamp(min=1)  # a batch may have nothing but ignored pixels
        logits = sized_as(labels, logits)
        total = F.cross_entropy(
            logits,
            labels,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        mean: Tensor = total / kept
        return mean

    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self)


class SegmentationMetrics:
    """``miou``: the mean over classes of intersection over union (Everingham et al., "The Pascal Visual Object
    Classes Challenge", section 4.4); ``pixel_accuracy``; ``worst_class``: the lowest of the classes' IoU.
    """

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        self._counts = ClassCounts()

    def update(self, outputs: Outputs, batch: Batch) -> None:
        labels = batch.targets.long()
        logits = sized_as(labels, self._task.answer(outputs).detach())
        kept = labels != self._task.ignore_index
        self._counts.add(logits.argmax(1)[kept], labels[kept], logits.shape[1])

    def compute(self) -> dict[str, float]:
        iou = self._counts.iou()
        return known(
            miou=macro(iou),
            pixel_accuracy=self._counts.accuracy(),
            worst_class=min(iou.values(), default=None),
        )

    def by_class(self) -> dict[str, ByClass]:
        return {"iou": self._counts.iou(), "recall": self._counts.recall()}

    def scores(self) -> np.ndarray | None:
        return None


def sized_as(labels: Tensor, logits: Tensor) -> Tensor:
    """Logits [batch, classes, ...] at the height and width of ``labels``."""
    import torch.nn.functional as F

    if logits.shape[-2:] == labels.shape[-2:]:
        return logits
    return F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
