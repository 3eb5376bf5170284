"""COCO's average precision of detected boxes, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Image = Mapping[str, "Tensor"]  # boxes [n, 4], corners; labels [n]; and scores [n] of detections
OVERLAPS = {"map": slice(None), "map_50": slice(0, 1), "map_75": slice(5, 6)}  # of 0.5, 0.55 ... 0.95


def average_precision(
    found: Sequence[Image], true: Sequence[Image]
) -> tuple[dict[str, float], dict[str, float]]:
    """The figures over all classes by name, and each class's over all overlaps; without classes that have no boxes.

    At most 100 detections an image, boxes of any size, 101 points of recall (Lin et al., "Microsoft COCO"). By
    pycocotools itself, which torchmetrics would call: importing that takes seconds in each step's process.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    classes = sorted({int(label) for image in (*found, *true) for label in image["labels"]})
    truth, answer = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for index, images in ((truth, true), (answer, found)):
            index.dataset = {
                "images": [{"id": number} for number in range(len(true))],
                "categories": [{"id": label} for label in classes],
                "annotations": list(_annotations(images)),
            }
            index.createIndex()
        evaluation = COCOeval(truth, answer, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # [overlaps, recalls, classes, sizes, numbers of detections]; -1 where a class has no boxes
    precision = np.asarray(evaluation.eval["precision"])[..., 0, -1] if classes else np.zeros((10, 101, 0))
    there = [number for number in range(len(classes)) if (precision[..., number] >= 0).all()]
    figures = (
        {name: float(precision[part][..., there].mean()) for name, part in OVERLAPS.items()} if there else {}
    )
    return figures, {str(classes[number]): float(precision[..., number].mean()) for number in there}


def _annotations(images: Sequence[Image]) -> Iterator[dict[str, Any]]:
    """Boxes as corner and sides, numbered from 1 (0 is "no match" to pycocotools)."""
    number = 0
    for image_id, image in enumerate(images):
        scores = image["scores"].tolist() if "scores" in image else [1.0] * len(image["labels"])
        rows = zip(image["boxes"].tolist(), image["labels"].tolist(), scores, strict=True)
        for (left, top, right, bottom), label, score in rows:
            number += 1
            width, height = right - left, bottom - top
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": label,
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": score,
            }
