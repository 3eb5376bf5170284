"""Gradients of the loss for a gate on every channel, without putting a gate anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Outputs, Task
from deploycompress.errors import StageFailed
from deploycompress.pruning.groups import ChannelGroup, Member
from deploycompress.pruning.slices import by_channel, consumers, producers


def gate_gradients(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[Batch],
    task: Task,
    call: Callable[..., Any],
) -> Iterator[dict[str, Tensor]]:
    """For each batch, group id -> dL/dm [width], float64, for gates m = 1 on the channels where they are read.

    A layer that reads a channel is linear in it, so the gate's gradient is the sum of w * dL/dw over the
    weights that read it, over all layers that do; residual streams need no case of their own. In evaluation
    mode: with batch statistics a filter's own sum is zero whatever the loss. Where nothing linear reads the
    channel, the weights that make it stand in. A batch without labels gets some drawn from the model's own
    answer, since the loss of a model against itself has no gradient.
    Raises StageFailed when there is no batch, or a loss is not finite.
    """
    module.eval()
    places = {g.id: list(consumers(module, g)) or list(producers(module, g)) for g in groups}
    layers = sorted({member.layer for found in places.values() for member in found})
    weights = {name: module.get_parameter(f"{name}.weight") for name in layers}
    for weight in weights.values():
        weight.requires_grad_(True)
    seen = 0
    for batch in batches:
        loss = _loss(call(module, batch.inputs), batch, task, seen)
        if not bool(torch.isfinite(loss)):
            raise StageFailed(
                f"the loss on batch {seen + 1} is {float(loss)}: importance cannot be told from it; look at the data and the weights"
            )
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        of = dict(zip(weights, gradients, strict=True))
        seen += 1
        yield {g.id: _gate(module, g, places[g.id], weights, of) for g in groups}
    if not seen:
        raise StageFailed("there is no batch to tell importance from; the data are empty")


def _loss(tensors: dict[str, Tensor], batch: Batch, task: Task, number: int) -> Tensor:
    outputs = Outputs(tensors)
    if batch.targets is not None:
        return task.loss(outputs, batch)
    return task.loss(outputs, Batch(batch.inputs, _drawn(outputs.main, number), batch.size))


def _drawn(logits: Tensor, seed: int) -> Tensor:
    """Labels [batch] drawn from the model's own probabilities [batch, classes]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.detach().float().softmax(-1).cpu(), 1, generator=generator)
    return drawn[:, 0].to(logits.device)


def _gate(
    module: nn.Module,
    group: ChannelGroup,
    places: Sequence[Member],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None],
) -> Tensor:
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in places:
        gradient = gradients[member.layer]
        if gradient is not None:
            product = (weights[member.layer].detach() * gradient).double()
            total += by_channel(module, group, member, product).cpu()
    return total
