"""The planner's first step: the model is built, its weights are loaded, and one batch goes through it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.contracts import Batch, Inputs, Outcome, Outputs, Ref, RunContext, Split, Stage
from deploycompress.errors import ConfigError, DeployCompressError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class InitialModel(Stage):
    """Fails with the place and the remedy before anything is trained; its digests are in every later key."""

    accepts = frozenset()
    produces = frozenset({"checkpoint"})

    class Config(StrictModel):
        weights: Path | None = None

    def inputs(self) -> Mapping[str, Ref]:
        return {}

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.model.source import load_weights

        module = context.model.build()
        if self.config.weights is not None:
            load_weights(module, self.config.weights)
        for split in ("train", "val"):
            _one_batch(module, split, context)
        folder = workdir / "model"
        checkpoint.save(module, folder, context.model)
        digests = {"model": context.model.digest, "data": context.data.digest}
        params = float(sum(p.numel() for p in module.parameters()))
        return Outcome(
            (Artifact.of("", "checkpoint", folder),), {"params": params}, details={"digests": digests}
        )


def _one_batch(module: nn.Module, split: Split, context: RunContext) -> None:
    import torch

    batch: Batch | None = next(iter(context.data.loader(split)), None)
    if batch is None or batch.size == 0:
        raise ConfigError(f"data: the {split} split is empty; look at data.source and data.root")
    shapes = {name: list(t.shape) for name, t in batch.inputs.items()}
    try:
        with torch.no_grad():
            outputs = Outputs(context.model.call(module, batch.inputs))
    except DeployCompressError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model: its forward fails on the first {split} batch, with inputs {shapes}: {type(error).__name__}: {error}"
        ) from error
    context.task.check(outputs, batch)
