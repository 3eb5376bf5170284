"""Object detection in one stage: boxes with a class each, told by offsets from anchors."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.data.tasks.anchors import BETWEEN, decode, encode, match
from deploycompress.data.tasks.aspects import Aspect
from deploycompress.data.tasks.average_precision import average_precision
from deploycompress.data.tasks.checks import chosen, require_boxes, require_metric, share, table
from deploycompress.errors import ConfigError, EnvironmentMissing

if TYPE_CHECKING:
    from torch import Tensor

NAME = "detection"
Kind = Literal["focal", "multibox"]
Target = Mapping[str, Any]
NEGATIVES = 3  # for each positive, the hardest ones


@dataclass(frozen=True)
class Detection:
    """Class logits [batch, anchors, classes], offsets [batch, anchors, 4] and the anchors [batch, anchors, 4].

    Targets are a list with a dict for each image: ``boxes`` [n, 4], corners x1 y1 x2 y2 in pixels of the input, and
    ``labels`` [n]. The network ends at these three outputs, and so does the ONNX file: **decoding the boxes and
    non-maximum suppression are not in it**, whoever uses it does that as ``detections`` does here, and no latency
    here includes it. ``examples.detector`` gives torchvision's one-stage detectors this form; a detector in two
    stages, which samples regions by the labels in between, has none.

    ``minimise``: ``focal`` (RetinaNet: a sigmoid for each class; Lin et al., "Focal Loss for Dense Object Detection",
    equation 5) or ``multibox`` (SSD: a softmax, in which class 0 is the background; Liu et al., "SSD", equation 1).
    ``scale``: of the offsets of centres and sides, as the network was trained with.
    """

    minimise: Kind = "focal"
    classes: int | None = None
    metric: str = "map"
    logits: str = "logits"
    offsets: str = "offsets"
    anchors: str = "anchors"
    foreground: float = 0.5
    background: float = 0.4
    alpha: float = 0.25
    gamma: float = 2.0
    scale: tuple[float, float] = (1.0, 1.0)
    score_threshold: float = 0.05
    overlap: float = 0.5
    most: int = 100

    figures: ClassVar[dict[str, MetricInfo]] = table(*map(share, ("map", "map_50", "map_75", "worst_class")))

    def __post_init__(self) -> None:
        if self.minimise not in get_args(Kind):
            raise ValueError(f"minimise is {self.minimise!r}; expected {', '.join(get_args(Kind))}")
        if not 0 < self.background <= self.foreground < 1:
            raise ValueError(
                f"background is {self.background} and foreground {self.foreground}; expected overlaps from 0 to 1, "
                "the first not above the second"
            )
        require_metric(NAME, self.metric, self.figures)

    @property
    def primary(self) -> MetricInfo:
        return self.figures[self.metric]

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """The logits: what a network says of boxes in the background means nothing."""
        return (Aspect(self.logits, class_axis=2 if self.minimise == "multibox" else None),)

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Three outputs of one number of anchors; boxes with an area, labels below classes. Raises ConfigError."""
        if missing := [n for n in (self.logits, self.offsets, self.anchors) if n not in outputs.tensors]:
            raise ConfigError(
                f"{NAME}: the model has no output {missing[0]!r}; received {', '.join(outputs.tensors)}; expected the "
                f"head's own outputs {self.logits}, {self.offsets} and {self.anchors}, before any post-processing: "
                "build it with deploycompress.examples.detector:torchvision, or name its outputs in task.args"
            )
        logits, offsets, anchors = self._outputs(outputs)
        wanted = (batch.size, logits.shape[1] if logits.ndim == 3 else -1, 4)
        if tuple(offsets.shape) != wanted or tuple(anchors.shape) != wanted:
            raise ConfigError(
                f"{NAME}: received {self.logits} {list(logits.shape)}, {self.offsets} {list(offsets.shape)} and "
                f"{self.anchors} {list(anchors.shape)} for a batch of {batch.size}; expected "
                f"[{batch.size}, anchors, classes] and twice [{batch.size}, anchors, 4]"
            )
        classes = logits.shape[2]
        if self.classes is not None and classes != self.classes:
            raise ConfigError(
                f"{NAME}: the model has {classes} classes; expected {self.classes}, as task.args says"
            )
        if not isinstance(batch.targets, (list, tuple)) or len(batch.targets) != batch.size:
            received = (
                "no labels" if batch.targets is None else f"targets of type {type(batch.targets).__name__}"
            )
            raise ConfigError(
                f"{NAME}: received {received} for a batch of {batch.size}; expected a list with a dict of 'boxes' and "
                "'labels' for each image: let the data source yield (image, {'boxes': ..., 'labels': ...})"
            )
        for number, target in enumerate(batch.targets):
            require_boxes(target, f"{NAME}: image {number} of a batch", classes, self._lowest)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Of classes and offsets together; a mean over images for ``focal``, over matched anchors for ``multibox``."""
        rows = list(zip(*self._outputs(outputs), batch.targets, strict=True))
        matched = [
            match(target["boxes"], anchors, self.foreground, self._background)
            for _, _, anchors, target in rows
        ]
        if self.minimise == "focal":
            each = [self._focal(*row, found) for row, found in zip(rows, matched, strict=True)]
            return sum(each[1:], start=each[0]) / len(each)
        each = [self._multibox(*row, found) for row, found in zip(rows, matched, strict=True)]
        positives = sum(int((found >= 0).sum()) for found in matched)
        return sum(each[1:], start=each[0]) / max(1, positives)

    @property
    def _lowest(self) -> int:
        """The first class that a box can have."""
        return 1 if self.minimise == "multibox" else 0

    @property
    def _background(self) -> float:
        return self.background if self.minimise == "focal" else self.foreground

    def _focal(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, target: Target, matched: Tensor
    ) -> Tensor:
        import torch
        from torchvision.ops import sigmoid_focal_loss

        true, counted = matched >= 0, matched != BETWEEN
        wanted = torch.zeros_like(logits)
        wanted[true, target["labels"][matched[true]]] = 1
        of_classes = sigmoid_focal_loss(
            logits[counted], wanted[counted], alpha=self.alpha, gamma=self.gamma, reduction="sum"
        )
        of_boxes = (offsets[true] - self._offsets(target, anchors, matched)).abs().sum()
        mean: Tensor = (of_classes + of_boxes) / max(1, int(true.sum()))
        return mean

    def _multibox(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, target: Target, matched: Tensor
    ) -> Tensor:
        import torch
        import torch.nn.functional as F

        true = matched >= 0
        wanted = torch.zeros_like(matched)
        wanted[true] = target["labels"][matched[true]]
        of_classes = F.cross_entropy(logits, wanted, reduction="none")
        hardest = (
            of_classes.masked_fill(true, -1).sort(descending=True).indices[: NEGATIVES * int(true.sum())]
        )
        negatives = hardest[~true[hardest]]
        of_boxes = F.smooth_l1_loss(offsets[true], self._offsets(target, anchors, matched), reduction="sum")
        return of_classes[true].sum() + of_classes[negatives].sum() + of_boxes

    def _offsets(self, target: Target, anchors: Tensor, matched: Tensor) -> Tensor:
        true = matched >= 0
        return encode(target["boxes"][matched[true]].to(anchors.dtype), anchors[true], self.scale)

    def detections(self, outputs: Outputs, batch: Batch) -> list[dict[str, Tensor]]:
        """``boxes``, ``scores`` and ``labels`` of every image: what is left out of the network.

        Anchors above the score's threshold, their boxes cut to the image, and of those of one class that overlap the
        best alone; the best ``most`` of an image.
        """
        from torchvision.ops import batched_nms, clip_boxes_to_image

        height, width = next(iter(batch.inputs.values())).shape[-2:]
        found = []
        for logits, offsets, anchors in zip(*self._outputs(outputs), strict=True):
            scores = logits.sigmoid() if self.minimise == "focal" else logits.softmax(-1)
            if self.minimise == "multibox":
                scores[:, 0] = 0  # the background
            anchor, label = (scores > self.score_threshold).nonzero(as_tuple=True)
            kept = scores[anchor, label]
            best = kept.sort(descending=True, stable=True).indices[: 10 * self.most]
            anchor, label, kept = anchor[best], label[best], kept[best]
            boxes = clip_boxes_to_image(decode(offsets[anchor], anchors[anchor], self.scale), (height, width))
            left = batched_nms(boxes, kept, label, self.overlap)[: self.most]
            found.append({"boxes": boxes[left], "scores": kept[left], "labels": label[left]})
        return found

    def metrics(self) -> DetectionMetrics:
        return DetectionMetrics(self)

    def _outputs(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        logits, offsets, anchors = (
            chosen(outputs, name, NAME).float() for name in (self.logits, self.offsets, self.anchors)
        )
        return logits, offsets, anchors


class DetectionMetrics:
    """``map`` over overlaps from 0.5 to 0.95, ``map_50`` and ``map_75``, as COCO defines them; ``worst_class``: the
    lowest of the classes' average precision.
    """

    def __init__(self, task: Detection) -> None:
        missing = [n for n in ("torchvision", "pycocotools") if importlib.util.find_spec(n) is None]
        if missing:
            raise EnvironmentMissing(
                f"{NAME} needs {', '.join(missing)}: pip install 'deploycompress[vision]'"
            )
        self._task = task
        self._found: list[dict[str, Tensor]] = []
        self._true: list[dict[str, Tensor]] = []

    def update(self, outputs: Outputs, batch: Batch) -> None:
        detections = self._task.detections(outputs, batch)
        self._found += [{name: values.cpu() for name, values in image.items()} for image in detections]
        self._true += [{name: target[name].cpu() for name in ("boxes", "labels")} for target in batch.targets]

    def compute(self) -> dict[str, float]:
        figures, classes = average_precision(self._found, self._true)
        return figures | ({"worst_class": min(classes.values())} if classes else {})

    def by_class(self) -> dict[str, dict[str, float]]:
        return {"ap": average_precision(self._found, self._true)[1]}

    def scores(self) -> np.ndarray | None:
        """None: average precision is a figure of all images together."""
        return None
