"""One-stage detectors as networks of tensors: images in, the head's outputs for every anchor out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from deploycompress.examples.resnet import Block


class Dense(nn.Module):
    """A detector without its post-processing, and the same in training and in use.

    Images [batch, 3, height, width], already scaled and normalised as the weights want it, to ``logits``
    [batch, anchors, classes], ``offsets`` [batch, anchors, 4] and ``anchors`` [batch, anchors, 4] (corners, pixels).
    Its parameters have the names they have in torchvision, so that its weights load.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.head: nn.Module = detector.head
        self.anchor_generator: nn.Module = detector.anchor_generator

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        from torchvision.models.detection.image_list import ImageList

        features = self.backbone(image)
        maps = [features] if isinstance(features, Tensor) else list(features.values())
        found = self.head(maps)
        height, width = image.shape[-2:]
        anchors = self.anchor_generator(ImageList(image, [(height, width)]), maps)[
            0
        ]  # the same for every image
        return {
            "logits": found["cls_logits"],
            "offsets": found["bbox_regression"],
            "anchors": anchors.unsqueeze(0).expand(image.shape[0], -1, -1),
        }


def torchvision(name: str = "ssdlite320_mobilenet_v3_large", **args: Any) -> nn.Module:
    """``retinanet_*`` (task.args: minimise: focal) and ``ssd*`` (minimise: multibox, scale: [10, 5]), untrained.

    ``args``: torchvision's own, such as ``num_classes``. Raises ValueError for detectors of another form.
    """
    from torchvision.models import get_model
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.models.detection.ssd import SSD

    detector = get_model(name, **({"weights": None, "weights_backbone": None} | args))
    if not isinstance(detector, (RetinaNet, SSD)):
        raise ValueError(
            f"{name} is a {type(detector).__name__}; expected a RetinaNet or an SSD, which have anchors alone"
        )
    return Dense(detector)


class Backbone(nn.Module):
    """A residual network of ``blocks`` blocks a stage, with the maps of its last three stages: at an eighth, a sixteenth
    and a thirty-second of the resolution, ``2 width``, ``4 width`` and ``4 width`` channels wide."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        widths = [width, width, 2 * width, 4 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(Block(a, b, 2), *(Block(b, b, 1) for _ in range(blocks - 1)))
            for a, b in pairwise(widths)
        )
        self.out_channels = widths[2:]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[batch, 3, height, width] -> three maps [batch, channels, height / 8 ..., width / 8 ...]."""
        x = self.relu(self.bn(self.conv(image)))
        maps = {}
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number > 0:
                maps[str(number)] = x
        return maps


def small(classes: int, width: int = 32, blocks: int = 1, sizes: Sequence[float] = (16, 32, 64)) -> nn.Module:
    """An untrained SSD on a small backbone, for a CPU (Liu et al., "SSD: Single Shot MultiBox Detector", section 2).

    ``classes``: with the background, which is 0. ``sizes``: sides in pixels of the objects that each of the three maps
    looks for; an anchor of that size and one of 1.4 times it, square and twice as wide or high. task.args: minimise:
    multibox, scale: [10, 5].
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.ssd import SSDHead

    backbone = Backbone(width, blocks)
    anchors = AnchorGenerator(tuple((size, size * 2**0.5) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
    head = SSDHead(backbone.out_channels, anchors.num_anchors_per_location(), classes)
    return Dense(SimpleNamespace(backbone=backbone, head=head, anchor_generator=anchors))
