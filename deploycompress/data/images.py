"""Images decoded when they are asked for, cut to one size and standardised."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from deploycompress.config.schema import DataConfig
from deploycompress.data.augment import Augment, augment
from deploycompress.data.samples import Indices, reading_sample
from deploycompress.errors import ConfigError, EnvironmentMissing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIXTEEN_BITS = 65535
WHOLE_PIXELS = ("none", "flip", "crop")  # augmentations that move pixels and compute no new ones
Side = Annotated[int, Field(ge=1)]


class PixelConfig(DataConfig):
    """The size and the scale of the pixels that a network reads."""

    image_size: Side | tuple[Side, Side] = Field(224, description="Height and width, or one number for both")
    channels: Literal[1, 3] = Field(3, description="3: RGB, 1: grey")
    mean: tuple[float, ...] | None = Field(
        None, description="Of each channel with pixels in 0..1; null: ImageNet's, for grey 0.5"
    )
    std: tuple[float, ...] | None = Field(None, description="As mean")

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> PixelConfig:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} numbers; expected {self.channels}, one for each channel"
                )
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std is {self.std}; expected numbers above 0")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size

    @property
    def standard(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, with pixels in 0..1."""
        grey = self.channels == 1
        return self.mean or ((0.5,) if grey else IMAGENET_MEAN), self.std or (
            (0.5,) if grey else IMAGENET_STD
        )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Decoded, stretched to the size, pixels divided by 255 and standardised."""
        (mean, std), (height, width) = self.standard, self.size
        return {
            "kind": "image",
            "height": height,
            "width": width,
            "channels": self.mode,
            "layout": "NCHW",
            "divisor": 255,
            "mean": list(mean),
            "std": list(std),
        }

    @property
    def mode(self) -> Literal["RGB", "L"]:
        """Pillow's name for the channels."""
        return "RGB" if self.channels == 3 else "L"


class ImageConfig(PixelConfig):
    """What the network reads of an image with a class, and how training changes it."""

    resize: Side | None = Field(
        None,
        description="The shorter side before the centre crop: 256 for 224; null: as small as the crop lets it be",
    )
    augment: Augment | Literal["resized_crop"] = Field(
        "none", description="In training; resized_crop is Inception's: 8 % to 100 % of the area, and flipped"
    )
    in_memory: bool = Field(False, description="Keep every image after it was decoded once")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Its shorter side is resized first, to ``resize`` or as small as the centre crop lets it be."""
        return super().preprocessing | {"resize": self.resize, "crop": "center"}

    @model_validator(mode="after")
    def _resize_holds_the_crop(self) -> ImageConfig:
        height, width = self.size
        if self.resize is not None and self.resize < max(height, width):
            raise ValueError(f"resize is {self.resize}; expected at least image_size, {max(height, width)}")
        return self


@dataclass(frozen=True)
class Pictures:
    """``read`` decodes the image at a position; [batch, channels, height, width] float32 comes out.

    ``changed``: whether training may augment them. ``threads``: how many are decoded at once.
    """

    read: Callable[[int], Image]
    labels: np.ndarray | None
    total: int
    config: ImageConfig
    changed: bool = False
    classes: Sequence[str] | None = None
    threads: int = 1
    _kept: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.total

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[Tensor, Tensor | None]:
        import torch

        kind = self.config.augment if self.changed and rng is not None else "none"
        seeds: Sequence[int | None] = [None] * len(indices)
        if kind == "resized_crop" and rng is not None:
            seeds = rng.integers(2**63, size=len(indices)).tolist()
        with ThreadPoolExecutor(self.threads) as pool:
            arrays = list((pool.map if self.threads > 1 else map)(self._pixels, indices.tolist(), seeds))
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        if rng is not None:
            moves = "flip" if kind == "resized_crop" else kind
            pixels = augment(pixels if moves in WHOLE_PIXELS else pixels.float(), rng, moves)
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices].astype(np.int64))
        return standardised(pixels, self.config), labels

    def _pixels(self, index: int, seed: int | None) -> np.ndarray:
        """[height, width, channels] uint8 of the size that the network reads."""
        from PIL import Image as pillow

        whole = self.config.augment == "resized_crop" and self.changed  # the crop is another one each time
        kept = self._kept.get(index)
        if kept is None:
            with reading_sample(index):
                image = in_eight_bits(self.read(index)).convert(self.config.mode)
            if not whole:
                image = fitted(image, self.config)
            if self.config.in_memory:
                self._kept[index] = np.asarray(image)
        else:
            image = pillow.fromarray(kept)
        if whole and seed is not None:
            image = random_crop(image, self.config, np.random.default_rng(seed))
        elif whole:
            image = fitted(image, self.config)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def fitted(image: Image, config: ImageConfig) -> Image:
    """Resized with antialiasing to the shorter side, then the centre of it.

    The arithmetic of torchvision's Resize and CenterCrop, with which most published weights were judged.
    """
    from PIL import Image as pillow

    (height, width), (w, h) = config.size, image.size
    if config.resize is not None:
        w, h = (
            (config.resize, int(config.resize * h / w))
            if w <= h
            else (int(config.resize * w / h), config.resize)
        )
    else:
        scale = max(height / h, width / w)
        w, h = max(width, int(w * scale)), max(height, int(h * scale))
    if (w, h) != image.size:
        image = image.resize((w, h), pillow.Resampling.BILINEAR)
    top, left = round((h - height) / 2), round((w - width) / 2)
    return image if (w, h) == (width, height) else image.crop((left, top, left + width, top + height))


def random_crop(image: Image, config: ImageConfig, rng: np.random.Generator) -> Image:
    """A random 8 % to 100 % of the area with sides 3:4 to 4:3, resized (Szegedy et al., "Going Deeper with
    Convolutions", section 6); the centre where ten tries do not fit."""
    from PIL import Image as pillow

    w, h = image.size
    height, width = config.size
    for _ in range(10):
        area = w * h * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= w and 0 < down <= h:
            left, top = int(rng.integers(w - across + 1)), int(rng.integers(h - down + 1))
            box = (left, top, left + across, top + down)
            return image.resize((width, height), pillow.Resampling.BILINEAR, box=box)
    return fitted(image, config)


def in_eight_bits(image: Image) -> Image:
    """The image, one of sixteen bits a pixel with its whole range; Pillow would cut off all above 255.

    Raises ConfigError for pixels whose range is not known.
    """
    from PIL import Image as pillow

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > SIXTEEN_BITS:
        raise ConfigError(
            f"an image of mode {image.mode} has pixels from {values.min()} to {values.max()}; expected 8 or 16 bits a "
            "channel: convert it, or read it in a module:function"
        )
    return pillow.fromarray(
        ((values.astype(np.uint32) * 255 + SIXTEEN_BITS // 2) // SIXTEEN_BITS).astype(np.uint8)
    )


def standardised(images: Tensor, config: PixelConfig) -> Tensor:
    """``images`` [batch, channels, height, width] in 0..255, which may be changed: 0..1, minus the mean, by the deviation."""
    import torch

    mean, std = (torch.tensor(values)[:, None, None] for values in config.standard)
    return images.float().div_(255).sub_(mean).div_(std)


def require_pillow(source: str) -> None:
    """Raises EnvironmentMissing without Pillow, which decodes images."""
    if importlib.util.find_spec("PIL") is None:
        raise EnvironmentMissing(f"data source {source} needs Pillow: pip install 'deploycompress[vision]'")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
