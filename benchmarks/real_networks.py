"""The networks whose published weights the benchmarks use, and one that they train themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ---------------------------------------------------------------- ResNets for CIFAR


class CifarBlock(nn.Module):
    """Two convolutions beside a shortcut without weights (He et al. 2016, option A).

    Where the block halves the image, the shortcut takes every second pixel and adds channels of zeros, as many
    before as after those that it has.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.zeros = stride, (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(inner + x)


class CifarResNet(nn.Module):
    """Images [n, 3, 32, 32] to logits [n, 10]: three stages of 16, 32 and 64 channels."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(c_in, c_out, stride)
    return nn.Sequential(first, *(CifarBlock(c_out, c_out, 1) for _ in range(blocks - 1)))


def resnet20() -> nn.Module:
    return CifarResNet(3)


def resnet56() -> nn.Module:
    return CifarResNet(9)


# ---------------------------------------------------------------- MobileNetV1


class SeparableBlock(nn.Module):
    """A depthwise and a pointwise convolution; stride 2 pads right and bottom, as the published weights want."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.dw = nn.Conv2d(c_in, c_in, 3, stride, 1 if stride == 1 else 0, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in, eps=1e-3)
        self.pw = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.pad(x, (0, 1, 0, 1))
        x = F.relu6(self.bn1(self.dw(x)))
        return F.relu6(self.bn2(self.pw(x)))


class MobileNetV1(nn.Module):
    """Images [n, 3, 128, 128] to logits [n, 1000] at a quarter of the widths of Howard et al. 2017."""

    WIDTHS = (8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, self.WIDTHS[0], 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(self.WIDTHS[0], eps=1e-3)
        steps = zip(self.WIDTHS, self.WIDTHS[1:], self.STRIDES, strict=False)
        self.blocks = nn.Sequential(*(SeparableBlock(*step) for step in steps))
        self.fc = nn.Linear(self.WIDTHS[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.conv1(F.pad(x, (0, 1, 0, 1)))))
        logits: Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return logits


def mobilenet_v1() -> nn.Module:
    return MobileNetV1()


# ---------------------------------------------------------------- spoken digits


class ProjectedBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a 1x1 convolution where the width or the size changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if (c_in, stride) != (c_out, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class SpokenDigits(nn.Module):
    """Log-mel spectrograms [n, 1, 40, 64] to logits [n, 10]: widths 64, 96 and 128."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(
            ProjectedBlock(64, 64, 1), ProjectedBlock(64, 96, 2), ProjectedBlock(96, 128, 2)
        )
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return logits


def spoken_digits() -> nn.Module:
    return SpokenDigits()


# ---------------------------------------------------------------- weights


def published(name: str) -> Callable[[Path], Mapping[str, Tensor]]:
    """Reads a file of the data folder: its state_dict, without the prefix of a wrapper."""

    def read(data: Path) -> Mapping[str, Tensor]:
        found = torch.load(data / name, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found)
        return {key.removeprefix("module."): value for key, value in found.items()}

    return read
