"""Batch normalisation goes into the layer before it, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from deploycompress.graph.fold import fold_batchnorm


def pair(layer: nn.Module, bn: nn.Module) -> nn.Module:
    return nn.Sequential(layer, bn, nn.ReLU())


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (pair(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)), ("batch", 4, 9)),
        (pair(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)), ("batch", 4, 9, 9)),
        (pair(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), ("batch", 2, 5, 5, 5)),
        (pair(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), ("batch", 4, 5, 5)),
        (pair(nn.Linear(7, 3), nn.BatchNorm1d(3)), ("batch", 7)),
        (pair(nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)), ("batch", 4, 5, 5)),
    ],
)
def test_every_layer_that_can_take_it(module, shape, small, shaken) -> None:
    model = small(shaken(module), x=shape)
    before = model.call(module, model.example(3))["output"]
    folded, names = fold_batchnorm(module, model, model.example(2))
    assert names == ["1"]
    assert isinstance(folded[1], nn.Identity) and isinstance(module[1], nn.modules.batchnorm._NormBase)
    torch.testing.assert_close(model.call(folded, model.example(3))["output"], before, rtol=1e-4, atol=1e-5)


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class SharedLayer(UsedTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.conv(x)))


class Returned(UsedTwice):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.bn(y), y


class SomethingBetween(UsedTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x).relu())


class BatchStatistics(UsedTwice):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Parametrized(UsedTwice):
    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


@pytest.mark.parametrize(
    "kind", [UsedTwice, SharedLayer, Returned, SomethingBetween, BatchStatistics, Parametrized]
)
def test_what_must_stay(kind, small, shaken) -> None:
    module = shaken(kind())
    model = small(module, x=("batch", 3, 5, 5))
    folded, names = fold_batchnorm(module, model, model.example(2))
    assert names == []
    assert isinstance(folded.bn, nn.BatchNorm2d)


class OneOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = UsedTwice(), pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.once(self.twice(x))


def test_what_must_stay_keeps_nothing_else_from_folding(small, shaken) -> None:
    module = shaken(OneOfTwo())
    model = small(module, x=("batch", 3, 5, 5))
    assert fold_batchnorm(module, model, model.example(2))[1] == ["once.1"]


class DependsOnAFlag(UsedTwice):
    """Control flow that a symbolic trace would not get through."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y if float(y.mean()) > -1e9 else x


def test_needs_no_symbolic_trace(small, shaken) -> None:
    module = shaken(DependsOnAFlag())
    model = small(module, x=("batch", 3, 5, 5))
    assert fold_batchnorm(module, model, model.example(2))[1] == ["bn"]


def test_a_difference_undoes_all_of_it(small, shaken, network, monkeypatch) -> None:
    monkeypatch.setattr("deploycompress.graph.fold._scaled", lambda layer, weight, scale: weight)
    model = small(network(), image=("batch", 3, 12, 12))
    folded, names = fold_batchnorm(model.module, model, model.example(2))
    assert names == []
    assert isinstance(folded[1], nn.BatchNorm2d)


def test_timm_keeps_the_activation_that_is_inside_its_normalisation(small, shaken) -> None:
    timm_layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    module = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), timm_layers.BatchNormAct2d(4)))
    model = small(module, x=("batch", 3, 6, 6))
    before = model.call(module, model.example(2))["output"]
    folded, names = fold_batchnorm(module, model, model.example(2))
    assert names == ["1"]
    after = model.call(folded, model.example(2))["output"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert float(after.min()) == 0
