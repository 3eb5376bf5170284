"""Batch-normalisation statistics, estimated anew from data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploycompress.errors import StageFailed


def reestimate_batchnorm(
    module: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    call: Callable[[nn.Module, Mapping[str, Tensor]], Any],
    fixed: Collection[nn.Module] = (),
) -> None:
    """Replace the running statistics by their average over ``batches`` (EagleEye, Li et al. 2020, section 4).

    Those of the layers in ``fixed`` stay as they are. Everything else stays in evaluation mode, and no gradient
    is taken. A module without running statistics is left as it is, and no batch is read for it. Afterwards the
    whole module is in evaluation mode. Raises StageFailed when there is no batch.
    """
    module.eval()
    norms = [
        m
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m not in fixed
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        seen = 0
        with torch.no_grad():
            for inputs in batches:
                call(module, inputs)
                seen += 1
        if not seen:
            raise StageFailed(
                "batch normalisation cannot be estimated anew without a batch; the data are empty"
            )
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
