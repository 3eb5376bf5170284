"""Recovery that needs no training, right after pruning: what lowers the validation loss is kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from deploycompress.contracts import Batch, Model, Note, Task
from deploycompress.errors import StageFailed
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.sparse import sparse_weights
from deploycompress.pruning.groups import ChannelGroup, Kept
from deploycompress.recovery.compensation import accept_if_better, compensate
from deploycompress.recovery.evaluation import device_of, mean_loss


@dataclass(frozen=True)
class Repaired:
    """The module that is best on the validation batches; ``losses`` before and after, a sample."""

    module: nn.Module
    losses: tuple[float, float]
    notes: tuple[Note, ...]


def repair(
    pruned: nn.Module,
    unpruned: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Kept,
    fitting: Sequence[Batch],
    validation: Sequence[Batch],
    task: Task,
    model: Model,
) -> Repaired:
    """``pruned`` with batch statistics estimated anew, with weights fitted by least squares too, or as it was.

    ``fitting``: calibration batches, of which no label is read; ``validation``: what decides. ``pruned`` itself
    stays as it is.
    """
    device = device_of(pruned)
    inputs = [batch.to(device).inputs for batch in fitting]

    def loss(module: nn.Module) -> float:
        return mean_loss(module, validation, task, model.call, teacher=unpruned)

    estimated = copy.deepcopy(pruned)
    reestimate_batchnorm(estimated, inputs, model.call)
    best, before, after = accept_if_better(pruned, estimated, loss)
    losses = (before, min(before, after))
    if sparse_weights(pruned):
        reason = "least squares: it would fill the zeros of sparse weights"
        return Repaired(best, losses, (Note("skipped", reason),))
    fitted = copy.deepcopy(pruned)
    try:
        notes = compensate(fitted, unpruned, groups, kept, fitting, model.call).notes
    except StageFailed as reason:
        return Repaired(best, losses, (Note("skipped", f"least squares: {reason}"),))
    reestimate_batchnorm(fitted, inputs, model.call)
    best, _, fitted_loss = accept_if_better(best, fitted, loss)
    if best is not fitted:
        notes = (
            Note(
                "decision", f"least squares: the validation loss did not fall ({fitted_loss:.4g}); not taken"
            ),
        )
    return Repaired(best, (before, min(before, after, fitted_loss)), notes)
