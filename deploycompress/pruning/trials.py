"""One trial of groups: cut out of a copy of the model, which must then equal the masked one, on random inputs."""

from __future__ import annotations

import copy
import math
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from deploycompress.contracts import Model
from deploycompress.errors import DeployCompressError
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.parity import compare, to_numpy
from deploycompress.model.source import seeded
from deploycompress.model.untrained import wake_zero_layers
from deploycompress.pruning.apply import apply
from deploycompress.pruning.groups import ChannelGroup, Kept
from deploycompress.pruning.layers import Layer, describe
from deploycompress.pruning.masked import masked

SAMPLES = 2
TOLERANCE = 1e-3  # of max|y|; a channel in the wrong place is off by far more
GRADUAL = 0.05  # of the first layer that is off: a channel in the wrong place shows at once, roundings add up
# The share of its channels that a group keeps lies between these, another for each group: what is written into
# the code may fit one width by chance, and two parts of a tensor may have to be equally wide.
ROUNDS = ((0.25, 0.75), (0.4, 0.9))


@dataclass(frozen=True)
class Problem:
    """Why groups cannot be pruned together.

    ``blamed``: where the pruned forward fails, the modules of the model that were at work, innermost first; known
    kinds of layers, which follow every cut, are left out. ``calls``: of modules, before it failed.
    ``layer``: where it runs, the first layer that gives something else than the masked one.
    """

    reason: str
    blamed: tuple[str, ...] = ()
    calls: int = 0
    layer: str | None = None


def try_out(subject: nn.Module, model: Model, groups: Sequence[ChannelGroup], number: int) -> Problem | None:
    """Why these groups cannot be pruned to the shares of that round, or None when they can."""
    kept = {group.id: _some(group, number) for group in groups}
    inputs = model.example(SAMPLES)
    calls = [0]
    counting = register_module_forward_pre_hook(lambda *_: calls.append(calls.pop() + 1))
    pruned = copy.deepcopy(subject)
    try:
        apply(pruned, groups, kept)
        with _lengths(pruned) as made:
            candidate = _outputs(pruned, model, inputs)
    except Exception as error:  # a forward whose sizes do not fit may raise anything
        reason = f"the forward pass fails when it is pruned ({_reason(error)})"
        return Problem(reason, _at_work(error, pruned), calls[0])
    finally:
        counting.remove()
    try:
        with _lengths(whole := masked(subject, groups, kept)) as expected:
            reference = _outputs(whole, model, inputs)
    except Exception as error:
        return Problem(f"its effect cannot be checked by masking ({_reason(error)})")
    try:
        apart = compare(reference, candidate).relative
    except DeployCompressError as error:
        return Problem(f"pruned and masked cannot be compared ({error})")
    if apart <= TOLERANCE:
        return None
    off = next(((a, b) for a, b in zip(made, expected, strict=False) if not _alike(a, b, TOLERANCE)), None)
    if off is None or _alike(*off, GRADUAL):
        apart = min(apart, _apart_in_double(subject, model, groups, kept))
    if apart > TOLERANCE:
        reason = f"pruned and masked differ by {apart:.2g} of the largest output"
        return Problem(reason, layer=None if off is None else off[0][0])
    return None


@contextmanager
def _lengths(module: nn.Module) -> Iterator[list[tuple[str, float]]]:
    """Each layer that is called, with the Euclidean norm of what it gives: zeros of masked channels add nothing."""
    found: list[tuple[str, float]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.append((name, float(output.norm())))

        return hook

    layers = [(name, part) for name, part in module.named_modules() if isinstance(describe(part), Layer)]
    hooks = [part.register_forward_hook(note(name)) for name, part in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _alike(one: tuple[str, float], other: tuple[str, float], tolerance: float) -> bool:
    return one[0] == other[0] and math.isclose(one[1], other[1], rel_tol=tolerance)


def _outputs(module: nn.Module, model: Model, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.no_grad(), seeded(0):
        return to_numpy(model.call(module, inputs))


def _apart_in_double(subject: nn.Module, model: Model, groups: Sequence[ChannelGroup], kept: Kept) -> float:
    """The difference in double precision: deep networks with random weights may enlarge a rounding a million times.

    Infinite where the model does not run in it.
    """
    whole = copy.deepcopy(subject).double()
    pruned = copy.deepcopy(whole)
    inputs = {k: t.double() if t.is_floating_point() else t for k, t in model.example(SAMPLES).items()}
    try:
        apply(pruned, groups, kept)
        reference = _outputs(masked(whole, groups, kept), model, inputs)
        return compare(reference, _outputs(pruned, model, inputs)).relative
    except Exception:  # numbers of single precision are written into its forward
        return math.inf


def _some(group: ChannelGroup, number: int) -> Tensor:
    """The channels that a group keeps in a round, whatever groups are tried out beside it."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{number} {group.id}".encode()))
    low, high = ROUNDS[number]
    share = low + (high - low) * float(torch.rand((), generator=generator))
    steps = min(max(1, round(group.steps * share)), max(1, group.steps - 1))
    return group.keep(torch.rand(group.width, generator=generator), steps * group.step)


def _at_work(error: BaseException, module: nn.Module) -> tuple[str, ...]:
    paths = {id(part): name for name, part in module.named_modules()}
    found = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in paths and not isinstance(describe(part), Layer):
            found.append(paths[id(part)])
    return tuple(dict.fromkeys(reversed(found)))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


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
                    weight.copy_(
                        torch.randn(weight.shape, generator=generator) / weight.shape[1:].numel() ** 0.5
                    )
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
