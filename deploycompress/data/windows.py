"""The window of an image that a sample shows: one for the image and for what is marked in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from deploycompress.data.images import PixelConfig, cores, standardised

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LEAST_AREA = 0.3  # of a random window, so that what is marked stays large enough to be learned
LEAST_RATIO = 3 / 4  # of its sides, by the image's own


class WindowConfig(PixelConfig):
    """In use the whole image is read, stretched to ``image_size``: nothing that is marked falls off its edges."""

    augment: Literal["none", "flip", "crop"] = Field(
        "none",
        description="In training; flip: half of the images left to right, crop: that, and a window of 30 % to 100 % "
        "of the area",
    )


@dataclass(frozen=True)
class Window:
    """A part of an image in its own pixels, and whether it is turned left to right afterwards."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool = False

    def cut(self, image: Image, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
        """The window resized to ``size`` (height, width): [height, width] or [height, width, channels].

        ``nearest``: no values between those of the image, as class indices want it; else with antialiasing.
        """
        from PIL import Image as pillow

        kind = pillow.Resampling.NEAREST if nearest else pillow.Resampling.BILINEAR
        box = (self.left, self.top, self.right, self.bottom)
        pixels = np.asarray(image.resize((size[1], size[0]), kind, box=box))
        return pixels[:, ::-1] if self.mirrored else pixels

    def boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(boxes [m, 4] in the pixels of the resized window, which of the n they are): those whose centre is in it.

        ``boxes``: [n, 4], corners x1 y1 x2 y2 in the image. What sticks out of the window is cut off (Liu et al.,
        "SSD", section 2.2).
        """
        low, high = np.array([self.left, self.top]), np.array([self.right, self.bottom])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        kept = np.flatnonzero(((centres >= low) & (centres < high)).all(1))
        scale = np.array([size[1], size[0]]) / (high - low)
        corners = boxes[kept].reshape(-1, 2, 2).clip(low, high)
        found = ((corners - low) * scale).reshape(-1, 4)
        if self.mirrored:
            found[:, [0, 2]] = size[1] - found[:, [2, 0]]
        return found, kept


def drawn(size: tuple[int, int], augment: str, rng: np.random.Generator | None) -> Window:
    """The window of an image of ``size`` (width, height): all of it, or in training a random one."""
    width, height = size
    if rng is None or augment == "none":
        return Window(0, 0, width, height)
    mirrored = bool(rng.random() < 0.5)
    if augment == "flip":
        return Window(0, 0, width, height, mirrored)
    area = rng.uniform(LEAST_AREA, 1.0)
    ratio = math.exp(rng.uniform(math.log(LEAST_RATIO), -math.log(LEAST_RATIO)))
    across, down = min(1.0, math.sqrt(area * ratio)) * width, min(1.0, math.sqrt(area / ratio)) * height
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    return Window(left, top, left + across, top + down, mirrored)


Read = Callable[[int, np.random.Generator | None], tuple[np.ndarray, Any]]  # pixels uint8, what is marked


def read_all(
    read: Read, indices: Sequence[int], rng: np.random.Generator | None, config: PixelConfig
) -> tuple[Tensor, list[Any]]:
    """(images [batch, channels, height, width] float32, standardised; what is marked in each).

    Every sample has random numbers of its own, so that the order in which threads decode them changes nothing.
    """
    import torch

    seeds: Sequence[int | None] = [None] * len(indices)
    if rng is not None:
        seeds = rng.integers(2**63, size=len(indices)).tolist()
    rngs = [None if seed is None else np.random.default_rng(seed) for seed in seeds]
    with ThreadPoolExecutor(cores()) as pool:
        samples = list(pool.map(read, indices, rngs))
    arrays = [pixels if pixels.ndim == 3 else pixels[:, :, None] for pixels, _ in samples]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return standardised(images, config), [marked for _, marked in samples]
