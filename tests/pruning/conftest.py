"""Small networks with every kind of coupling, as models that the pruning code is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from deploycompress.config.schema import InputSpec
from deploycompress.model.outputs import named_outputs
from deploycompress.model.source import seeded

F = nn.functional


class Given:
    """A ``contracts.Model`` around a class of this file."""

    digest = "given"

    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, ...], max: int | None = None) -> None:
        self.make = make
        dtype = "int64" if max else "float32"
        self.inputs = {"x": InputSpec(shape=("batch", *shape), dtype=dtype, max=max)}

    def build(self) -> nn.Module:
        with seeded(0):
            return self.make().eval()

    def example(self, batch_size: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        spec = self.inputs["x"]
        shape = (batch_size, *spec.shape[1:])
        if spec.max:
            return {"x": torch.randint(0, spec.max, shape, generator=generator)}
        return {"x": torch.randn(shape, generator=generator)}

    def call(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return named_outputs(module(inputs["x"]))


class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.PReLU(24),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 5),
        )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.norm, self.b = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1)
        self.down = nn.Conv2d(16, 32, 1, stride=2)
        self.main = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(torch.sigmoid(self.norm(self.a(x)))))
        x = F.relu(self.main(x) + self.down(x))
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.spatial = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.hardswish(self.spatial(F.hardswish(self.norm(self.expand(x)))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.b = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 24)
        self.c = nn.ConvTranspose2d(24, 12, 2, stride=2, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(F.relu(self.c(F.relu(self.norm(self.b(F.relu(self.a(x))))))).mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 16, 1)
        self.norm = nn.BatchNorm2d(24)
        self.c = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        both = torch.cat([self.a(x), self.b(x)], 1)
        x = torch.cat([self.c(F.relu(self.norm(both))), both], 1)
        return self.head(F.relu(x).mean((2, 3)))


class Split(nn.Module):
    """The halves of one convolution go separate ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        left, right = F.relu(self.a(x)).chunk(2, 1)
        return self.head(torch.cat([self.left(left), self.right(right)], 1).mean((2, 3)))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b, self.head = nn.Linear(8 * 16, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.b(F.relu(self.a(x)).flatten(1))))


class Tokens(nn.Module):
    """Embedding, a learned position, layer norms and an MLP around a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.position = nn.Parameter(torch.randn(1, 6, 16))
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.embedding(x) + self.position
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x).mean(1))


IMAGE = (3, 8, 8)
NETWORKS: dict[str, Given] = {
    **{make.__name__.lower(): Given(make, IMAGE) for make in (Chain, Residual, Depthwise, Grouped)},
    **{make.__name__.lower(): Given(make, IMAGE) for make in (Concat, Split, Flat)},
    "tokens": Given(Tokens, (6,), max=11),
}


@pytest.fixture(params=NETWORKS)
def network(request: Any) -> Given:
    return NETWORKS[request.param]


@pytest.fixture
def given() -> type[Given]:
    return Given


@pytest.fixture
def networks() -> dict[str, Given]:
    return NETWORKS
