"""Batch statistics that fit the weights which a training leaves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from deploycompress.contracts import RunContext
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.recovery.evaluation import device_of
from deploycompress.recovery.optimization import fixed_norms
from deploycompress.recovery.processes import keeps_result

BATCHES = 200  # enough for means and variances of every channel


def reestimate(student: nn.Module, context: RunContext, trainable: Sequence[str] = ()) -> None:
    """Estimate the batch statistics of ``student`` anew, on training samples as they are in use.

    Those that ``trainable`` leaves out stay as they are, as they did while it was trained. Of several processes only
    the one whose network is kept does it. Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
    Pruning". Raises StageFailed when there is no sample.
    """
    if not keeps_result():
        return
    batches = itertools.islice(context.data.loader("train"), BATCHES)
    device = device_of(student)
    inputs = (batch.to(device).inputs for batch in batches)
    reestimate_batchnorm(student, inputs, context.model.call, fixed_norms(student, trainable))
