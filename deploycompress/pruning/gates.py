"""Derivatives of the loss for a gate on every channel of every group, without putting a gate anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deploycompress.contracts import Batch, Outputs, Task, targets_are_classes
from deploycompress.errors import StageFailed
from deploycompress.pruning.groups import ChannelGroup, Member
from deploycompress.pruning.slices import by_channel, consumers, producers, weight_name
from deploycompress.recovery.evaluation import answer_of

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
    for gates, loss in _losses(module, groups, batches, task, call):
        yield gates.sums(gates.gradients(loss))


def gate_curvatures(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[Batch],
    task: Task,
    call: Call,
    draws: int,
) -> Iterator[dict[str, Tensor]]:
    """For each batch, group id -> an estimate of the diagonal of d2L/dm2 [width], for the same gates.

    Hutchinson's estimator: the mean over ``draws`` vectors v of random signs of v * (H v), where H v is one
    more gradient, that of v . dL/dm. Raises as ``gate_gradients`` does.
    """
    generator = torch.Generator().manual_seed(1)
    for gates, loss in _losses(module, groups, batches, task, call, twice=True):
        with torch.enable_grad():
            first = gates.sums(gates.gradients(loss, create_graph=True))
        yield mean_over_batches(_draw(gates, first, generator) for _ in range(draws))


def _draw(gates: _Gates, first: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """v * (H v) for one v, from dL/dm with its graph."""
    signs = {id: torch.randint(0, 2, g.shape, generator=generator) * 2.0 - 1 for id, g in first.items()}
    with torch.enable_grad():
        along = torch.stack([(signs[id] * gradient).sum() for id, gradient in first.items()]).sum()
    products = gates.sums(gates.gradients(along, retain_graph=True))
    return {id: signs[id] * product for id, product in products.items()}


def mean_over_batches(each: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Group id -> the mean of what every batch gave; ``each`` has one entry at least."""
    totals: dict[str, Tensor] = {}
    count = 0
    for found in each:
        count += 1
        totals = {id: value + totals[id] if totals else value for id, value in found.items()}
    return {id: total / count for id, total in totals.items()}


@dataclass(frozen=True)
class _Gates:
    """Where each group's channels are read, and the weights that read them, by layer."""

    module: nn.Module
    groups: Sequence[ChannelGroup]
    places: Mapping[str, Sequence[Member]]
    weights: Mapping[str, Tensor]

    def gradients(
        self, value: Tensor, *, create_graph: bool = False, retain_graph: bool = False
    ) -> dict[str, Tensor]:
        """Layer -> dvalue/dw, without the layers that ``value`` does not depend on."""
        if not value.requires_grad:  # linear in all weights: nothing is left to derive
            return {}
        found = torch.autograd.grad(
            value,
            list(self.weights.values()),
            create_graph=create_graph,
            retain_graph=create_graph or retain_graph,
            allow_unused=True,
        )
        return {name: g for name, g in zip(self.weights, found, strict=True) if g is not None}

    def sums(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group id -> the sum of w * gradient over each channel's weights."""
        products = {name: (self.weights[name].detach() * g).double() for name, g in gradients.items()}
        return {g.id: _gate(self.module, g, self.places[g.id], products) for g in self.groups}


def _losses(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[Batch],
    task: Task,
    call: Call,
    *,
    twice: bool = False,
) -> Iterator[tuple[_Gates, Tensor]]:
    """The loss on every batch, in evaluation mode; ``twice`` lets it be differentiated that often."""
    places = {g.id: list(consumers(module, g)) or list(producers(module, g)) for g in groups}
    layers = {member.layer: weight_name(module, member) for found in places.values() for member in found}
    weights = {name: module.get_parameter(layers[name]) for name in sorted(layers)}
    wanted = {name: weight.requires_grad for name, weight in weights.items()}
    gates = _Gates(module, groups, places, weights)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    module.eval()
    seen = 0
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            seen += 1
            # Fused attention kernels have no second derivative.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
                loss = _loss(module, batch.to(device), task, call, generator)
                if not bool(torch.isfinite(loss)):
                    raise StageFailed(
                        f"the loss on batch {seen} is {loss.item()}: importance cannot be told from it; "
                        "look at the data and the weights"
                    )
            yield gates, loss
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
            total = total + by_channel(module, group, member, products[member.layer]).cpu()
    return total


def _loss(module: nn.Module, batch: Batch, task: Task, call: Call, generator: torch.Generator) -> Tensor:
    outputs = Outputs(call(module, batch.inputs))
    if batch.targets is not None:
        return task.loss(outputs, batch)
    main = answer_of(task, outputs).float()
    if targets_are_classes(task) and main.ndim == 2 and main.shape[1] > 1:
        drawn = torch.multinomial(main.detach().softmax(1).cpu(), 1, generator=generator)
        return nn.functional.cross_entropy(main, drawn[:, 0].to(main.device))
    # A Gaussian around the answer is to other outputs what the softmax is to classes.
    noise = torch.randn(main.shape, generator=generator).to(main.device)
    return 0.5 * (main - (main.detach() + noise)).square().mean()
