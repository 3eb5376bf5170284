"""A small U-Net: a class for every pixel of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _twice(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each normalised and rectified."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """``depth`` halvings and as many doublings; each doubling sees the map of its size on the way down (Ronneberger,
    Fischer, Brox, "U-Net", 2015, figure 1; here with normalisation, padding, and nearest neighbours for the
    transposed convolution).
    """

    def __init__(self, width: int, depth: int, classes: int, channels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        above = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.up = nn.ModuleList(_twice(below + beside, beside) for below, beside in above)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[batch, channels, height, width], sides divisible by 2^depth -> logits [batch, classes, height, width]."""
        passed: list[Tensor] = []
        x = image
        for level, convolutions in enumerate(self.down):
            x = convolutions(x if level == 0 else self.pool(x))
            passed.append(x)
        for convolutions, beside in zip(self.up, reversed(passed[:-1]), strict=True):
            x = convolutions(torch.cat([self.upsample(x), beside], 1))
        return self.classify(x)  # type: ignore[no-any-return]


def build(width: int = 16, depth: int = 4, classes: int = 21, channels: int = 3) -> UNet:
    """An untrained network; with the defaults 2.0 million parameters."""
    return UNet(width, depth, classes, channels)
