"""What several rooms' tests share: a pipeline that takes seconds, and a store of its own for each test."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("GITHUB_STEP_SUMMARY", None)

MODEL = '''
"""A network that trains in a second."""
from torch import nn


def build(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )
'''

PIPELINE = """
name: tiny
seed: 1
model:
  build: model.py:build
  inputs: {image: {shape: [batch, 1, 8, 8]}}
task: classification
data: {source: digits, image_size: 8, batch_size: 128, calibration: 32}
target: {threads: 1}
stages:
  - train: {epochs: 1, lr: 0.1}
  - prune: {target: {macs: 60%}, criterion: magnitude}
  - distill: {epochs: 1, lr: 0.05}
  - export
  - quantize: {precision: int8}
  - benchmark
gates:
  artifact_size: {max: 1 MB}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first: at the end one process would wait for the other."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with model.py and a pipeline.yaml of every kind of step; DESIGN asks for under 10 s when warm."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text(textwrap.dedent(MODEL))
    (folder / "pipeline.yaml").write_text(PIPELINE.lstrip())
    return folder / "pipeline.yaml"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's store."""
    store = tmp_path / "store"
    monkeypatch.setenv("DEPLOYCOMPRESS_STORE", str(store))
    return store
