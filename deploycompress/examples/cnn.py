"""The classic network of two convolutions for 28x28 images."""

from __future__ import annotations

from torch import Tensor, nn


class TwoConvolutions(nn.Module):
    """conv 3x3 - pool - conv 3x3 - pool - linear - linear; ``width`` scales every hidden layer.

    The network that most MNIST tutorials use has 32 and 64 channels and 128 hidden units: ``width=32``.
    """

    def __init__(self, width: int, classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(2 * width * (image_size // 4) ** 2, 4 * width)
        self.relu3 = nn.ReLU()
        self.linear2 = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """[batch, channels, image_size, image_size] -> logits [batch, classes]."""
        x = self.pool1(self.relu1(self.conv1(image)))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.linear2(self.relu3(self.linear1(self.flatten(x))))  # type: ignore[no-any-return]


def build(width: int = 32, classes: int = 10, channels: int = 1, image_size: int = 28) -> TwoConvolutions:
    """An untrained network; with the defaults 421,642 parameters."""
    return TwoConvolutions(width, classes, channels, image_size)
