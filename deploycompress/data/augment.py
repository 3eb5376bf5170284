"""Random geometric changes of training images, a batch at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Augment = Literal["none", "shift", "affine"]


def augment(images: Tensor, rng: np.random.Generator, kind: Augment) -> Tensor:
    """``shift``: up to a tenth of the side. ``affine``: also up to 12 degrees and a tenth in size."""
    if kind == "none":
        return images
    if kind == "shift":
        return affine(images, rng, shift=0.1)
    return affine(images, rng, shift=0.1, degrees=12.0, scale=0.1)


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
