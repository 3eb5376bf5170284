"""A criterion's scores, checked, and made comparable between groups."""

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
) -> dict[str, Tensor]:
    """Group id -> float64 [width]; larger is more important.

    Scores of a criterion that is not ``comparable`` are divided by their group's mean. Raises ConfigError for
    a criterion that does not give one number a channel, StageFailed when its numbers are not finite or all
    equal.
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
    return scores if criterion.comparable else _by_mean(scores)


def _by_mean(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    means = {id: float(s.mean()) for id, s in scores.items()}
    return {id: s / means[id] if means[id] > 0 else s for id, s in scores.items()}
