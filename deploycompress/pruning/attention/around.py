"""The dependency trace of a model around its attention, and the reasons of what stays whole there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from deploycompress.contracts import Model
from deploycompress.errors import StageFailed
from deploycompress.pruning.attention.stand_in import Traceable, make_traceable
from deploycompress.pruning.attention.trial import Attention
from deploycompress.pruning.dependency_graph import trace
from deploycompress.pruning.groups import Unpruned
from deploycompress.pruning.layers import describe


def trace_around(module: nn.Module, model: Model, attention: Sequence[Attention]) -> tuple[Any, Traceable]:
    """The dependency graph of a traceable copy of ``module``.

    Attention that is not understood is followed like everything else; where that fails, it is left out.
    Raises StageFailed when the trace fails all the same.
    """
    traced = copy.deepcopy(module).cpu().eval()
    traceable = make_traceable(traced, attention)
    try:
        return trace(traced, model), traceable
    except StageFailed:
        if all(found.layout is not None for found in attention):
            raise
    traced = copy.deepcopy(module).cpu().eval()
    traceable = make_traceable(traced, attention, cut=True)
    return trace(traced, model), traceable


def explained(unpruned: Sequence[Unpruned], attention: Sequence[Attention]) -> list[Unpruned]:
    """Layers of attention whose heads stay have that reason, whatever the trace made of them."""
    reasons = {found.path: found.reason for found in attention if found.layout is None}
    found = []
    for item in unpruned:
        path = next((p for p in reasons if not p or f"{item.layer}.".startswith(f"{p}.")), None)
        found.append(item if path is None else Unpruned(item.layer, f"attention: {reasons[path]}"))
    return found


def recurrent(module: nn.Module) -> list[Unpruned]:
    """Recurrent layers, which are left whole."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.RNNBase)]
    return [Unpruned(name, str(describe(part))) for name, part in found]
