"""torchvision's one-stage detectors as networks of tensors: images in, the head's outputs for every anchor out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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
