"""A network's figures on one split."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deploycompress.contracts import Loader, Model, Outputs, Task
from deploycompress.errors import StageFailed


def evaluate(
    module: nn.Module, model: Model, loader: Loader, task: Task
) -> tuple[dict[str, float], np.ndarray | None]:
    """The task's metrics, and a score for every sample where the task has one; in evaluation mode.

    Raises StageFailed when an output is not finite, ConfigError when outputs and labels do not fit the task.
    """
    device = device_of(module)
    training = module.training
    module.eval()
    metrics = task.metrics()
    try:
        with torch.inference_mode():
            for number, batch in enumerate(loader):
                moved = batch.to(device)
                outputs = Outputs(model.call(module, moved.inputs))
                if bad := [
                    k for k, v in outputs.tensors.items() if v.is_floating_point() and not v.isfinite().all()
                ]:
                    raise StageFailed(
                        f"evaluation, batch {number}: NaN or Inf in the model's output {bad[0]!r}, from inputs without: "
                        "the weights, or what was done to them, are not sound; train with a lower lr"
                    )
                task.check(outputs, moved)
                metrics.update(outputs, moved)
    finally:
        module.train(training)
    return metrics.compute(), metrics.scores()


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU for one that has none."""
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
