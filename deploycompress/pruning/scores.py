"""A criterion's scores, checked, and given a common unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Criterion, Task
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.pruning.groups import ChannelGroup


def score(
    criterion: Criterion,
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[Batch],
    task: Task,
    call: Callable[..., Any],
    worth: Mapping[str, float],
) -> dict[str, Tensor]:
    """Group id -> float64 [width]; larger is more important.

    A criterion that is not ``comparable`` only says which channels of a group matter more than its others.
    What the group as a whole is worth is then taken to be what it costs: its mean score becomes ``worth``
    (group id -> what one channel saves). Otherwise costly layers would lose everything, or cheap ones.
    Raises ConfigError for a criterion that does not give one number a channel, StageFailed when its numbers
    are not finite or all equal.
    """
    name = type(criterion).__name__
    found = criterion(module, groups, batches, task, call)
    scores: dict[str, Tensor] = {}
    for group in groups:
        given = found.get(group.id)
        if given is None or tuple(given.shape) != (group.width,):
            received = "nothing" if given is None else f"the shape {list(given.shape)}"
            raise ConfigError(
                f"criterion {name}: received {received} for {group.id}; expected [{group.width}]"
            )
        scores[group.id] = given.detach().double().cpu()
        if not bool(torch.isfinite(scores[group.id]).all()):
            raise StageFailed(f"criterion {name}: the scores of {group.id} are not all finite")
    if scores and criterion.needs_data and all(bool((s == s[0]).all()) for s in scores.values()):
        raise StageFailed(
            f"criterion {name}: all channels of every group have the same score; are there data, and does the "
            "loss depend on the weights?"
        )
    if criterion.comparable:
        return scores
    means = {id: float(s.mean()) for id, s in scores.items()}
    return {id: s / means[id] * worth[id] if means[id] > 0 else s for id, s in scores.items()}
