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

    A batch counts by its samples. One of a single sample is left out where there are others: a layer with one value a
    channel has no variance of it.
    Those of the layers in ``fixed`` stay as they are. Everything else stays in evaluation mode, and no gradient
    is taken. A module without running statistics is left as it is, and no batch is read for it. Afterwards the
    whole module is in evaluation mode. Raises StageFailed when there is no batch, or none that can be normalised.
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
            norm.train()
        seen = 0
        single: list[Mapping[str, Tensor]] = []
        with torch.no_grad():
            for inputs in batches:
                size = len(next(iter(inputs.values())))
                if size == 1:
                    single.append(inputs)
                    continue
                seen += size
                _average(call, module, inputs, norms, size / seen)
            if not seen:
                for seen, inputs in enumerate(single, 1):
                    _average(call, module, inputs, norms, 1 / seen)
        if not seen:
            raise StageFailed(
                "batch normalisation cannot be estimated anew without a batch; the data are empty"
            )
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _average(
    call: Callable[[nn.Module, Mapping[str, Tensor]], Any],
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    norms: Iterable[_BatchNorm],
    share: float,
) -> None:
    """Let the statistics of ``inputs`` be ``share`` of the average."""
    for norm in norms:
        norm.momentum = share
    try:
        call(module, inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise StageFailed(
            "batch normalisation cannot be estimated anew from batches of one sample, where a layer has one value a "
            "channel; raise data.batch_size"
        ) from error
