"""Networks that tell spoken words apart, from log-mel spectrograms."""

from __future__ import annotations

from torch import Tensor, nn


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 one, each with batch normalisation."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(width, width_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.depthwise(x)))
        return self.relu2(self.bn2(self.pointwise(x)))  # type: ignore[no-any-return]


class Convolutional(nn.Module):
    """A stem and ``depth`` separable convolutions at half the resolution (DS-CNN: Zhang et al., "Hello Edge: Keyword
    Spotting on Microcontrollers", section 3)."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(*(Separable(width, width) for _ in range(depth)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, classes)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """[batch, 1, mels, frames] -> logits [batch, classes]."""
        x = self.blocks(self.relu(self.bn(self.conv(spectrogram))))
        return self.linear(self.pool(x).flatten(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Two convolutions that quarter the resolution, a GRU over the frames that are left, its last state to the classes
    (CRNN: Zhang et al., as above)."""

    def __init__(self, width: int, hidden: int, classes: int, mels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.project = nn.Linear(width * -(-mels // 4), hidden)  # each convolution halves, and rounds up
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """[batch, 1, mels, frames] -> logits [batch, classes]."""
        x = self.relu1(self.bn1(self.conv1(spectrogram)))
        x = self.relu2(self.bn2(self.conv2(x)))
        frames = x.permute(0, 3, 1, 2).flatten(2)  # [batch, frames / 4, width * mels / 4]
        states, _ = self.gru(self.project(frames))
        return self.linear(states[:, -1])  # type: ignore[no-any-return]


def convolutional(width: int = 64, depth: int = 4, classes: int = 10) -> Convolutional:
    """An untrained network for [batch, 1, any mels, any frames]."""
    return Convolutional(width, depth, classes)


def recurrent(width: int = 32, hidden: int = 96, classes: int = 10, mels: int = 40) -> Recurrent:
    """An untrained network for [batch, 1, mels, any frames]."""
    return Recurrent(width, hidden, classes, mels)
