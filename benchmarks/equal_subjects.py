"""The networks of the comparison at equal latency, with their data, recipes and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import real_data
import real_networks
import torch
from equal_recovery import Preparation, Recipe
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def _flipped_and_moved(pixels: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        """Images [n, c, h, w]: every other one mirrored, each cut out of itself with a border of zeros."""
        count, height, width = len(images), images.shape[2], images.shape[3]
        padded = F.pad(images, (pixels, pixels, pixels, pixels))
        top, left = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1, 1), generator=generator)
        rows = top + torch.arange(height).view(1, 1, height, 1)
        columns = left + torch.arange(width).view(1, 1, 1, width)
        mirrored = torch.rand((count, 1, 1, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, 2 * left + width - 1 - columns, columns)
        channels = torch.arange(images.shape[1]).view(1, -1, 1, 1)
        return padded[torch.arange(count).view(-1, 1, 1, 1), channels, rows, columns]

    return augment


def _shifted_and_louder(spectrograms: Tensor, generator: torch.Generator) -> Tensor:
    """Log-mel [n, 1, mels, frames]: moved in time by up to 8 frames, and made louder or quieter."""
    count, frames = len(spectrograms), spectrograms.shape[3]
    shift = torch.randint(-8, 9, (count, 1), generator=generator)
    index = (torch.arange(frames) - shift).clamp(0, frames - 1)
    moved = spectrograms.gather(3, index.view(count, 1, 1, frames).expand_as(spectrograms))
    return moved + 0.3 * torch.randn((count, 1, 1, 1), generator=generator)


@dataclass(frozen=True)
class Subject:
    """One network with its data."""

    build: str  # of real_networks
    shape: tuple[int, int, int]
    sets: Callable[[Path, Path], real_data.Sets]
    weights: Callable[[Path], Mapping[str, Tensor]] | None  # None: trained by the script
    preparation: Preparation
    dense: Recipe  # of the fine-tuning before anything is pruned; no step: the weights are taken as they are
    recovery: Recipe
    target: float
    data: str  # in words


CIFAR = Preparation(lambda x: (x.float() / 255 - IMAGENET_MEAN) / IMAGENET_STD, _flipped_and_moved(4))
PHOTOGRAPHS = Preparation(lambda x: x.float() / 127.5 - 1, _flipped_and_moved(12))
SPECTROGRAMS = Preparation(lambda x: x, _shifted_and_louder)


def _cifar(name: str, weights: str, target: float) -> Subject:
    return Subject(
        name,
        (3, 32, 32),
        real_data.cifar10_jpeg,
        real_networks.published(f"cifar10_resnet_weights/{weights}"),
        CIFAR,
        Recipe(400, 128, 0.02),
        Recipe(200, 128, 0.02),
        target,
        "CIFAR-10 (JPEG copy), 10,000 test images",
    )


SUBJECTS = {
    "resnet20": _cifar("resnet20", "resnet20-12fca82f.th", 0.75),
    "resnet56": _cifar("resnet56", "resnet56-4bfd9763.th", 0.75),
    "spoken_digits": Subject(
        "spoken_digits",
        (1, 40, 64),
        real_data.spoken_digits,
        None,
        SPECTROGRAMS,
        Recipe(500, 64, 0.05),
        Recipe(150, 64, 0.02),
        0.15,
        "Free Spoken Digits, 300 test recordings (takes 0-4)",
    ),
    "mobilenet_v1": Subject(
        "mobilenet_v1",
        (3, 128, 128),
        real_data.photographs,
        real_networks.published("imagenet_mobilenetv1_025/mbnet128_0.25.pth"),
        PHOTOGRAPHS,
        Recipe(0, 64, 0.01),
        Recipe(300, 64, 0.01, labels=False),
        0.8,
        "500 of 1,000 photographs with ImageNet labels; calibrated and recovered on the others, without labels",
    ),
}
