"""Boxes against anchors: which anchor answers for which box, and the offsets between the two."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND, BETWEEN = -1, -2
LARGEST_GROWTH = math.log(1000 / 16)  # of a side; an untrained network would ask for infinite boxes


def match(boxes: Tensor, anchors: Tensor, foreground: float, background: float) -> Tensor:
    """For each anchor the number of its box, BACKGROUND or BETWEEN, [anchors]; boxes [n, 4], corners.

    The box that overlaps most, from an intersection over union of ``foreground`` on; below ``background`` none. Each
    box also has the anchor that overlaps it most, whatever the overlap (Liu et al., "SSD", section 2.2).
    """
    import torch
    from torchvision.ops import box_iou

    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    overlap = box_iou(boxes.to(anchors.dtype), anchors)
    best, matched = overlap.max(0)
    matched[best < foreground] = BETWEEN
    matched[best < background] = BACKGROUND
    matched[overlap.argmax(1)] = torch.arange(len(boxes), device=anchors.device)
    found: Tensor = matched
    return found


def encode(boxes: Tensor, anchors: Tensor, scale: tuple[float, float]) -> Tensor:
    """Offsets [n, 4] of boxes from anchors: centres in the anchor's sides, sides as logarithms of their ratio.

    Girshick et al., "Rich feature hierarchies", appendix C; ``scale`` multiplies the first two and the last two.
    """
    import torch

    (centre, size), (base, side) = _centred(boxes), _centred(anchors)
    return torch.cat([scale[0] * (centre - base) / side, scale[1] * (size / side).log()], -1)


def decode(offsets: Tensor, anchors: Tensor, scale: tuple[float, float]) -> Tensor:
    """Boxes [..., 4] with corners from offsets: the inverse of ``encode``."""
    import torch

    base, side = _centred(anchors)
    centre = base + offsets[..., :2] / scale[0] * side
    half = (offsets[..., 2:] / scale[1]).clamp(max=LARGEST_GROWTH).exp() * side / 2
    return torch.cat([centre - half, centre + half], -1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and sides, [..., 2] each, of corners [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low
