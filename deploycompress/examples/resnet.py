"""A residual network of the CIFAR kind, for small images."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

Shortcut = Literal["projection", "padding"]


class Padded(nn.Module):
    """A shortcut without weights: every second pixel, and ``zeros`` channels of zeros before and after (option A)."""

    def __init__(self, stride: int, zeros: int) -> None:
        super().__init__()
        self.stride, self.zeros = stride, zeros

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; a 1x1 convolution on the shortcut, or zeros, where the shape changes."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, shortcut: Shortcut = "projection"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if (channels_in, stride) == (channels_out, 1):
            return
        if shortcut == "padding":
            self.shortcut = Padded(stride, (channels_out - channels_in) // 2)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stem, three stages of ``(depth - 2) / 6`` blocks, global average, one linear layer.

    The stages are ``width``, ``2 width`` and ``4 width`` channels wide; the second and third halve the
    resolution (He et al., "Deep Residual Learning for Image Recognition", section 4.2, where width is 16 and the
    shortcuts are padded). The parameters have the names of the checkpoints that are passed around for CIFAR-10.
    """

    def __init__(self, width: int, depth: int, classes: int, channels: int, shortcut: Shortcut) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth is 6n + 2 (8, 14, 20, 32, 44, 56 ...), got {depth}")
        if shortcut not in get_args(Shortcut):
            raise ValueError(f"shortcut is {shortcut!r}, expected {' or '.join(get_args(Shortcut))}")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, blocks, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, blocks, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """[batch, channels, height, width] -> logits [batch, classes]."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(
    channels_in: int, channels_out: int, blocks: int, stride: int, shortcut: Shortcut
) -> nn.Sequential:
    first = Block(channels_in, channels_out, stride, shortcut)
    return nn.Sequential(first, *(Block(channels_out, channels_out, 1, shortcut) for _ in range(blocks - 1)))


def build(
    width: int = 32, depth: int = 8, classes: int = 10, channels: int = 1, shortcut: Shortcut = "projection"
) -> ResNet:
    """An untrained network for ``channels`` x any height x any width (multiples of 4)."""
    return ResNet(width, depth, classes, channels, shortcut)
