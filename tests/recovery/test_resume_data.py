"""A training on real loaders, cut at each step, ends as one that was not: augmented, a user's own data set, a stream."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deploycompress.config.schema import DataConfig, InputSpec
from deploycompress.contracts import RunContext
from deploycompress.data.source import SourceData
from deploycompress.engine.store import FileStore
from deploycompress.errors import Interrupted
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.training import fit
from deploycompress.registry import DATASETS

X = np.random.default_rng(0).standard_normal((41, 1, 8, 8)).astype(np.float32)
Y = np.arange(41) % 10


class Named:
    digest = "0" * 64
    inputs = {"image": InputSpec(shape=("batch", 1, 8, 8))}

    def call(self, module, inputs):
        return {"logits": module(inputs["image"])}


class Noisy(torch.utils.data.Dataset):
    """Draws from torch's, numpy's and Python's own random numbers."""

    targets = Y.tolist()

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i):
        noise = torch.rand(1).item() + np.random.rand()
        return X[i] * (1 + 0.1 * noise), int(Y[i])


def shuffled() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True, drop_last=True)


def augmented(tmp_path: Path) -> SourceData:
    config = DATASETS.load("digits").Config(source="digits", image_size=8, batch_size=290, augment="shift")
    return SourceData(config, Named(), 0)


def own(splits):
    def make(tmp_path: Path) -> SourceData:
        return SourceData(DataConfig(source="resumed_data:load", batch_size=8), Named(), 0)

    make.splits = splits
    return make


SOURCES = {
    "augmented": augmented,
    "own data set": own(lambda: {"train": Noisy(), "val": Noisy()}),
    "stream": own(lambda: {"train": shuffled(), "val": Noisy()}),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def trained(run: RunContext, stop_at: int | None = None) -> tuple[nn.Module, bool]:
    """The network of a run that is told to stop when it asks for the ``stop_at``-th time; and whether it was."""
    asked = iter(range(10**6))
    cut = replace(run, stopping=lambda: next(asked) == stop_at)
    for attempt in (cut, run):
        net = network()
        try:
            fit(net, Supervised(run.model, run.task), Recipe(epochs=2, lr=0.05), attempt)
        except Interrupted:
            continue
        return net, attempt is run
    raise AssertionError("it was interrupted twice")


@pytest.mark.parametrize("name", SOURCES)
def test_cut_before_any_step_it_ends_bit_identical(context, tmp_path, monkeypatch, name) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    make = SOURCES[name]
    if hasattr(make, "splits"):
        module = types.ModuleType("resumed_data")
        module.__file__ = __file__
        module.load = make.splits
        monkeypatch.setitem(sys.modules, "resumed_data", module)
        monkeypatch.setattr(make.splits, "__module__", "resumed_data")

    def run(folder: str) -> RunContext:
        given = replace(context(), model=Named(), data=make(tmp_path))
        return replace(given, store=FileStore(tmp_path / folder), step="a" * 64)

    whole, _ = trained(run("whole"))
    steps = 2 * len(run("whole").data.loader("train", epoch=0))
    cut = 0
    for stop_at in range(100):
        found, was_cut = trained(run(f"cut-{stop_at}"), stop_at)
        same = map(torch.equal, whole.state_dict().values(), found.state_dict().values())
        assert all(same), f"cut where it asked for the {stop_at}th time"
        if not was_cut:
            break
        cut += 1
    assert cut > steps, "each step, and the validations, were places to be cut at"
