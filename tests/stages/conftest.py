"""A run's context over the embedded digits and a tiny network, and its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.artifact import Artifact
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig, TaskConfig
from deploycompress.contracts import Event, RunContext
from deploycompress.registry import DATASETS

MODEL = """
from torch import nn


def build(batch_free: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
"""


@pytest.fixture
def run_context(tmp_path: Path) -> Callable[..., RunContext]:
    """(batch, rehearsal, target ...) -> a context; ``events`` collects what was told."""
    (tmp_path / "tiny_model.py").write_text(MODEL)

    def make(
        batch: int | str = "batch",
        *,
        rehearsal: bool = False,
        events: list[Event] | None = None,
        **target: Any,
    ) -> RunContext:
        from deploycompress.data.open import open_task
        from deploycompress.data.source import SourceData
        from deploycompress.engine.store import FileStore
        from deploycompress.model.source import SourceModel

        inputs = {"image": InputSpec(shape=(batch, 1, 8, 8))}
        model = SourceModel(ModelConfig(build=f"{tmp_path / 'tiny_model.py'}:build", inputs=inputs), 0)
        config = DATASETS.load("digits").Config(
            source="digits", image_size=8, batch_size=50, calibration=64, augment="none"
        )
        return RunContext(
            model=model,
            data=SourceData(config, model, 0, few=rehearsal),
            task=open_task(TaskConfig()),
            target=TargetConfig(**target),
            gates={},
            store=FileStore(tmp_path / "store"),
            seed=0,
            rehearsal=rehearsal,
            emit=(events if events is not None else []).append,
            stopping=lambda: False,
        )

    return make


@pytest.fixture
def checkpoint_of(tmp_path: Path) -> Callable[[RunContext], Artifact]:
    """The untrained network as a checkpoint."""

    def make(context: RunContext) -> Artifact:
        from deploycompress.model import checkpoint

        folder = tmp_path / "source" / "model"
        checkpoint.save(context.model.build(), folder, context.model)
        return Artifact.of("model", "checkpoint", folder)

    return make


@pytest.fixture
def exported_of(tmp_path: Path, checkpoint_of: Callable[[RunContext], Artifact]) -> Callable[..., Artifact]:
    """The untrained network as an ONNX file; ``opset`` may be given."""

    def make(context: RunContext, **options: Any) -> Artifact:
        from deploycompress.graph.export import export_onnx
        from deploycompress.graph.feeds import parity_feeds
        from deploycompress.model import checkpoint

        module = checkpoint.load(checkpoint_of(context).path, context.model)
        path = tmp_path / "exported" / "model.onnx"
        export_onnx(
            module,
            context.model,
            path,
            feeds=parity_feeds(context.model, context.data.loader("val")),
            **options,
        )
        return Artifact.of("export", "onnx", path)

    return make
