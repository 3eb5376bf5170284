"""Groups tried out before they are offered: pruned must equal masked, on random inputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from deploycompress.contracts import Model
from deploycompress.errors import DeployCompressError
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.parity import compare, to_numpy
from deploycompress.model.source import seeded
from deploycompress.model.untrained import wake_zero_layers
from deploycompress.pruning.apply import apply
from deploycompress.pruning.groups import ChannelGroup, Unpruned
from deploycompress.pruning.layers import Layer, describe
from deploycompress.pruning.masked import masked

SAMPLES = 2
TOLERANCE = 1e-3  # of max|y|; a channel in the wrong place is off by far more
SHARES = (0.5, 0.75)  # of each group; a reshape that is written into the code may fit one width by chance


def screen(
    module: nn.Module, model: Model, groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    """Which groups can be pruned, and why not the others.

    All at once where that works, which is the rule; else by halves, until each that does not work is alone.
    """
    good, failed = list(groups), list[Unpruned]()
    if groups:
        subject = livened(module, model)
        for share in SHARES:
            good, others = _that_agree(subject, model, good, share)
            failed += others
    return good, failed


def _that_agree(
    subject: nn.Module, model: Model, groups: Sequence[ChannelGroup], share: float
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    good: list[ChannelGroup] = []
    failed: list[Unpruned] = []
    pending = [list(groups)] if groups else []
    while pending:
        part = pending.pop()
        problem = _problem(subject, model, [*good, *part], share)
        if problem is None:
            good += part
        elif len(part) > 1:
            pending += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            alone = _problem(subject, model, part, share) if good else problem
            failed.append(Unpruned(part[0].id, alone or f"together with other groups {problem}"))
    order = {group.id: i for i, group in enumerate(groups)}
    return sorted(good, key=lambda g: order[g.id]), sorted(failed, key=lambda u: order[u.layer])


def _problem(subject: nn.Module, model: Model, groups: Sequence[ChannelGroup], share: float) -> str | None:
    """Why these groups cannot be pruned to about that share, or None when they can."""
    generator = torch.Generator().manual_seed(0)
    kept = {g.id: g.keep(torch.rand(g.width, generator=generator), _about(g, share)) for g in groups}
    pruned = copy.deepcopy(subject)
    inputs = model.example(SAMPLES)
    try:
        apply(pruned, groups, kept)
        with torch.no_grad(), seeded(0):
            candidate = to_numpy(model.call(pruned, inputs))
    except Exception as error:
        return f"the forward pass fails when it is pruned ({_reason(error)})"
    try:
        with torch.no_grad(), seeded(0):
            reference = to_numpy(model.call(masked(subject, groups, kept), inputs))
    except Exception as error:
        return f"its effect cannot be checked by masking ({_reason(error)})"
    try:
        apart = compare(reference, candidate).relative
    except DeployCompressError as error:
        return f"pruned and masked cannot be compared ({error})"
    if apart > TOLERANCE:
        return f"pruned and masked differ by {apart:.2g} of the largest output"
    return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _about(group: ChannelGroup, share: float) -> int:
    """A number of channels that goes into the group's segments and units, and is less than all of them."""
    return max(1, int(group.width // group.step * share)) * group.step


def livened(module: nn.Module, model: Model) -> nn.Module:
    """A copy in which every branch counts.

    Layers and normalisations of zeros, and layer scales of 1e-6, would hide a channel in the wrong place, so the
    parameters of normalisations and those in no known layer are drawn anew, and batch statistics follow.
    Where that makes the outputs overflow, the copy is as it was.
    """
    plain = copy.deepcopy(module).cpu().eval()
    wake_zero_layers(plain)
    subject = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in subject.modules():
            layer = describe(part)
            if isinstance(layer, Layer) and "in" in layer.widths:
                weight = getattr(part, "weight", None)
                if weight is not None and not bool(weight.any()):  # an untrained head
                    weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
                continue
            for parameter in part.parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    try:
        reestimate_batchnorm(subject, [model.example(SAMPLES)], model.call)
        with torch.no_grad(), seeded(0):
            outputs = model.call(subject, model.example(SAMPLES))
    except Exception:  # batch statistics of one value, for one; the groups are then tried on what there is
        return plain
    return subject if all(bool(torch.isfinite(t).all()) for t in outputs.values()) else plain
