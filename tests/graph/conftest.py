"""A model contract over small modules, and an ONNX file of a small convolutional network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploycompress.config.schema import InputSpec
from deploycompress.graph.export import export_onnx


@dataclass(frozen=True)
class SmallModel:
    """Inputs by position, in the order given; random normal float32."""

    inputs: Mapping[str, InputSpec]
    module: nn.Module
    digest: str = "0"

    def build(self) -> nn.Module:
        return self.module

    def example(self, batch_size: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch_size)
        sizes = {"batch": batch_size, "length": 6}
        return {
            name: torch.randn([sizes.get(str(size), size) for size in spec.shape], generator=generator)
            for name, spec in self.inputs.items()
        }

    def call(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = module(*inputs.values())
        if isinstance(outputs, Tensor):
            return {"output": outputs}
        return (
            dict(outputs)
            if isinstance(outputs, Mapping)
            else {f"output_{i}": t for i, t in enumerate(outputs)}
        )


def _small(module: nn.Module, **shapes: tuple[int | str, ...]) -> SmallModel:
    return SmallModel({name: InputSpec(shape=shape) for name, shape in shapes.items()}, module.eval())


def _shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2)
                nn.init.normal_(layer.bias, 0, 0.3)
    return module.eval()


def _network() -> nn.Module:
    torch.manual_seed(0)
    return _shaken(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )
    )


@pytest.fixture(scope="session")
def small() -> Callable[..., SmallModel]:
    """(module, name=shape ...) -> the model contract over it."""
    return _small


@pytest.fixture(scope="session")
def shaken() -> Callable[..., nn.Module]:
    """Gives a module statistics and weights that a wrong fold would show."""
    return _shaken


@pytest.fixture(scope="session")
def network() -> Callable[[], nn.Module]:
    return _network


@pytest.fixture(scope="session")
def feed() -> Callable[..., dict[str, np.ndarray]]:
    """(batch, seed) -> inputs of ``network``."""

    def make(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        return {"image": generator.standard_normal((batch, 3, 12, 12), dtype=np.float32)}

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``network`` as an ONNX file with a dynamic batch."""
    model = _small(_network(), image=("batch", 3, 12, 12))
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(model.module, model, path, feeds=[model.example(1), model.example(5)])
    return path
