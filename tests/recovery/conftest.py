"""A tiny network on a tiny separable problem, with everything a training loop asks of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from deploycompress.config.schema import InputSpec, TargetConfig
from deploycompress.contracts import Batch, Event, RunContext
from deploycompress.data.tasks.classification import Classification


class Vectors:
    """Three classes of points in eight dimensions; ``spoil`` may change a batch."""

    digest = "0" * 64

    def __init__(self, spoil: Callable[[Batch, int], Batch] = lambda batch, number: batch) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(96) % 3
        self.x = torch.randn(96, 8, generator=generator) + 2 * nn.functional.one_hot(self.y, 8)
        self.spoil = spoil

    def loader(self, split: str, epoch: int | None = None) -> list[Batch]:
        order = torch.arange(96)
        if epoch is not None:
            order = torch.randperm(96, generator=torch.Generator().manual_seed(epoch))
        batches = [Batch({"x": self.x[i]}, self.y[i], len(i)) for i in order.split(16)]
        return [self.spoil(b, n) for n, b in enumerate(batches)] if split == "train" else batches


class Named:
    """The network's one input is ``x``, its output ``output``."""

    digest = "0" * 64
    inputs = {"x": InputSpec(shape=("batch", 8))}

    def call(self, module: nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
        return {"output": module(inputs["x"])}


@pytest.fixture
def network():
    """``network()`` -> the same fresh network every time."""

    def make(width: int = 16, dropout: float = 0.0, norm: bool = True) -> nn.Module:
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(width) if norm else nn.Identity()
        return nn.Sequential(nn.Linear(8, width), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 3))

    return make


@pytest.fixture
def context():
    """``context(...)`` -> a run; its events are in ``events``."""

    def make(spoil=lambda batch, number: batch, stopping=lambda: False, rehearsal=False, seed=0, events=None):
        return RunContext(
            model=Named(),
            data=Vectors(spoil),
            task=Classification(),
            target=TargetConfig(),
            gates={},
            store=None,
            seed=seed,
            rehearsal=rehearsal,
            emit=([] if events is None else events).append,
            stopping=stopping,
        )

    return make


@pytest.fixture
def events() -> list[Event]:
    return []
