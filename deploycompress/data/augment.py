"""Random geometric changes of training images, a batch at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Augment = Literal["none", "shift", "affine", "flip", "crop"]


def augment(images: Tensor, rng: np.random.Generator, kind: Augment) -> Tensor:
    """``shift``: up to a tenth of the side. ``affine``: also up to 12 degrees and a tenth in size.

    ``flip``: left to right, half of the images. ``crop``: flipped, and moved by up to an eighth of the side in whole
    pixels (He et al., "Deep Residual Learning for Image Recognition", section 4.2: 4 of 32).
    """
    match kind:
        case "none":
            return images
        case "shift":
            return affine(images, rng, shift=0.1)
        case "affine":
            return affine(images, rng, shift=0.1, degrees=12.0, scale=0.1)
        case "flip":
            return flip(images, rng)
        case "crop":
            return crop(flip(images, rng), rng)


def flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the images, left to right; [batch, channels, height, width]."""
    import torch

    turned = torch.from_numpy(rng.random(len(images)) < 0.5)
    return torch.where(turned[:, None, None, None], images.flip(-1), images)


def crop(images: Tensor, rng: np.random.Generator, share: float = 1 / 8) -> Tensor:
    """Each image moved by up to ``share`` of its sides, in whole pixels; what comes in from outside is 0."""
    import torch
    import torch.nn.functional as F

    n, _, height, width = images.shape
    top, left = round(share * height), round(share * width)
    wide = F.pad(images, (left, left, top, top))
    y = torch.from_numpy(rng.integers(0, 2 * top + 1, n))[:, None] + torch.arange(height)
    x = torch.from_numpy(rng.integers(0, 2 * left + 1, n))[:, None] + torch.arange(width)
    rows = torch.arange(n)[:, None, None]
    return wide.permute(0, 2, 3, 1)[rows, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def affine(
    images: Tensor, rng: np.random.Generator, shift: float, degrees: float = 0.0, scale: float = 0.0
) -> Tensor:
    """Each image shifted, turned and scaled by its own random amounts; what comes in from outside is 0.

    ``images``: [batch, channels, height, width]; ``shift`` and ``scale`` are shares of the side.
    """
    import torch
    import torch.nn.functional as F

    n = len(images)
    angle = rng.uniform(-degrees, degrees, n) * math.pi / 180
    size = 1 / rng.uniform(1 - scale, 1 + scale, n)
    theta = np.zeros((n, 2, 3), dtype=np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = size * np.cos(angle)
    theta[:, 1, 0] = size * np.sin(angle)
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = rng.uniform(-2 * shift, 2 * shift, (n, 2))  # the side is 2 long in grid coordinates
    grid = F.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
