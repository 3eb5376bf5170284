"""Gradients of the loss for a gate on every channel of every group, without putting a gate anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Outputs, Task
from deploycompress.errors import StageFailed
from deploycompress.pruning.groups import ChannelGroup, Member
from deploycompress.pruning.slices import by_channel, consumers, producers, weight_name

Call = Callable[..., Any]


def gate_gradients(
    module: nn.Module, groups: Sequence[ChannelGroup], batches: Iterable[Batch], task: Task, call: Call
) -> Iterator[dict[str, Tensor]]:
    """For each batch, group id -> dL/dm [width], float64, for gates m = 1 on the channels where they are read.

    A layer that reads a channel is linear in it, so the gate's gradient is the sum of w * dL/dw over the
    weights that read it, over all layers that do: exact for coupled layers, and residual streams need no case
    of their own. Where nothing linear reads the channel, the weights that make it stand in.
    In evaluation mode: with batch statistics a filter's own sum is zero whatever the loss. A batch without
    labels gets some drawn from the model's own answer (which gives the true Fisher's gradients), since the
    loss of a model against itself has none.
    Raises StageFailed when there is no batch, or a loss is not finite.
    """
    places = {g.id: list(consumers(module, g)) or list(producers(module, g)) for g in groups}
    layers = {member.layer: weight_name(module, member) for found in places.values() for member in found}
    weights = {name: module.get_parameter(layers[name]) for name in sorted(layers)}
    wanted = {name: weight.requires_grad for name, weight in weights.items()}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    module.eval()
    seen = 0
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            seen += 1
            with torch.enable_grad():
                loss = _loss(module, batch.to(device), task, call, generator)
                if not bool(torch.isfinite(loss)):
                    raise StageFailed(
                        f"the loss on batch {seen} is {loss.item()}: importance cannot be told from it; "
                        "look at the data and the weights"
                    )
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            products = {
                name: (weights[name].detach() * gradient).double()
                for name, gradient in zip(weights, found, strict=True)
                if gradient is not None
            }
            yield {g.id: _gate(module, g, places[g.id], products) for g in groups}
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(wanted[name])
    if not seen:
        raise StageFailed("there is no batch to tell importance from; the data are empty")


def _gate(
    module: nn.Module, group: ChannelGroup, places: Sequence[Member], products: Mapping[str, Tensor]
) -> Tensor:
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in places:
        if member.layer in products:
            total += by_channel(module, group, member, products[member.layer]).cpu()
    return total


def _loss(module: nn.Module, batch: Batch, task: Task, call: Call, generator: torch.Generator) -> Tensor:
    outputs = Outputs(call(module, batch.inputs))
    if batch.targets is not None:
        return task.loss(outputs, batch)
    main = outputs.main.float()
    if main.ndim == 2 and main.shape[1] > 1:
        drawn = torch.multinomial(main.detach().softmax(1).cpu(), 1, generator=generator)
        return nn.functional.cross_entropy(main, drawn[:, 0].to(main.device))
    # A Gaussian around the answer is to other outputs what the softmax is to classes.
    noise = torch.randn(main.shape, generator=generator).to(main.device)
    return 0.5 * (main - (main.detach() + noise)).square().mean()
