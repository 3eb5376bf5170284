"""Whole residual blocks and transformer layers that can be taken out of a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deploycompress.contracts import Model
from deploycompress.errors import DeployCompressError
from deploycompress.model.parity import compare, to_numpy
from deploycompress.model.passthrough import PassThrough, first_tensor, take_out
from deploycompress.model.source import seeded
from deploycompress.pruning.apply import apply
from deploycompress.pruning.groups import ChannelGroup, choose
from deploycompress.pruning.trials import SAMPLES, livened

SAME = 1e-5  # of max|y|: less is rounding


@dataclass(frozen=True)
class Block:
    """A module whose output can be replaced by its input."""

    id: str  # module path: layer1.1, encoder.layers.encoder_layer_3
    layers: tuple[str, ...]  # paths of the modules inside it
    groups: tuple[str, ...]  # ids of the channel groups that lie wholly inside it


def find_blocks(
    module: nn.Module, model: Model, groups: Sequence[ChannelGroup], exclude: Sequence[str] = ()
) -> tuple[Block, ...]:
    """Every block of ``module``, each one tried out on random inputs; none lies inside another.

    A block holds a convolution or linear layer, is called once, and gives one tensor of the form of the first
    tensor it gets. Either it adds something to its input (with all its parameters at zero it gives its input
    back, as residual blocks do; of nested ones the innermost), or it is one of a list of modules of one class
    (layers that normalise last) whose output has the channels of its input. ``exclude``: patterns of layers that stay, with every block around them.
    """
    subject = livened(module, model)
    parts = dict(subject.named_modules())
    calls = _observed(subject, model)
    fits = [
        path
        for path, call in calls.items()
        if call.times == 1
        and call.keeps_form()
        and not _shares_parameters(subject, path)
        and not any(fnmatchcase(name, p) for name in (path, *_inside(parts, path)) for p in exclude)
    ]
    residual = _innermost([path for path in fits if _adds_to_its_input(parts[path], calls[path])])
    listed = _innermost([path for path in fits if _is_one_of_a_list(parts, path)])
    apart = [path for path in listed if not any(_nested(path, other) for other in residual)]
    chosen = set(_that_can_go(subject, model, [path for path in parts if path in {*residual, *apart}]))
    blocks = [
        Block(path, tuple(_inside(parts, path)), tuple(_groups_inside(groups, path)))
        for path in parts
        if path in chosen
    ]
    return tuple(
        block
        for block in blocks
        if block.id in residual or _passes_channels_on(subject, model, block, groups)
    )


def remove(module: nn.Module, blocks: Iterable[Block]) -> None:
    """Take ``blocks`` out of ``module``, in place: each gives its input back."""
    take_out(module, [block.id for block in blocks])


def taken(blocks: Sequence[Block], widths: Mapping[str, int]) -> tuple[Block, ...]:
    """The blocks that go."""
    return tuple(block for block in blocks if widths.get(block.id) == 0)


def bypassed(module: nn.Module, blocks: Sequence[Block]) -> nn.Module:
    """A copy that runs ``blocks`` and replaces their output by their input: what one without them must equal."""
    copied = copy.deepcopy(module)
    for block in blocks:
        copied.get_submodule(block.id).register_forward_hook(
            lambda _, given, named, output: first_tensor(given, named), with_kwargs=True
        )
    return copied


def block_losses(
    module: nn.Module, blocks: Sequence[Block], rise: Callable[[nn.Module], float]
) -> dict[str, float]:
    """Block id -> the ``rise`` of the loss without it, at least 0.

    Infinite where the loss is not finite: such a block has to stay.
    """
    found = {}
    for block in blocks:
        without = copy.deepcopy(module)
        remove(without, [block])
        risen = rise(without)
        found[block.id] = max(0.0, risen) if math.isfinite(risen) else math.inf
    return found


# ---------------------------------------------------------------- what a candidate is


@dataclass
class _Call:
    """The first call of a module, as it was before anything worked in place; and how many there were."""

    given: tuple[Any, ...] | None  # None: they cannot be copied
    named: Mapping[str, Any]
    output: Any = None
    times: int = 0

    def keeps_form(self) -> bool:
        if self.given is None:
            return False
        try:
            first = first_tensor(self.given, self.named)
        except TypeError:
            return False
        same = isinstance(self.output, Tensor) and self.output.shape == first.shape
        return same and self.output.dtype == first.dtype and first.is_floating_point()


def _observed(subject: nn.Module, model: Model) -> dict[str, _Call]:
    """Path -> the call of every module that holds a convolution or linear layer and is none itself."""
    calls: dict[str, _Call] = {}

    def before(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if path not in calls:
                calls[path] = _Call(*_copied(given, named))
            calls[path].times += 1

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            calls[path].output = output

        return hook

    hooks: list[Any] = []
    for path, part in subject.named_modules():
        if path and any(
            isinstance(inner, (_ConvNd, nn.Linear)) for inner in part.modules() if inner is not part
        ):
            hooks += [
                part.register_forward_pre_hook(before(path), with_kwargs=True),
                part.register_forward_hook(after(path)),
            ]
    try:
        with torch.no_grad(), seeded(0):
            model.call(subject, model.example(SAMPLES))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _copied(
    given: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...] | None, Mapping[str, Any]]:
    try:
        return copy.deepcopy(given), copy.deepcopy(named)
    except Exception:  # what the user's classes raise; such a module is no block
        return None, {}


def _adds_to_its_input(part: nn.Module, call: _Call) -> bool:
    """Whether it gives its input back, as it came, when all its parameters are zero."""
    assert call.given is not None
    kept = {parameter: parameter.detach().clone() for parameter in part.parameters()}
    first = first_tensor(call.given, call.named)
    try:
        with torch.no_grad(), seeded(0):
            for parameter in kept:
                parameter.zero_()
            output = part(*copy.deepcopy(call.given), **copy.deepcopy(dict(call.named)))
            return bool((output - first).abs().max() <= SAME * first.abs().max())
    except Exception:  # a network need not run with zeros: an inverse, a division
        return False
    finally:
        with torch.no_grad():
            for parameter, values in kept.items():
                parameter.copy_(values)


def _is_one_of_a_list(parts: Mapping[str, nn.Module], path: str) -> bool:
    owner = parts[path.rpartition(".")[0]]
    if not isinstance(owner, (nn.Sequential, nn.ModuleList)) or isinstance(parts[path], nn.Sequential):
        return False
    return len(owner) > 1 and {type(child) for child in owner} - {PassThrough} == {type(parts[path])}


def _shares_parameters(subject: nn.Module, path: str) -> bool:
    """Whether something outside of it, or another name of it, uses one of its parameters."""
    inside: set[int] = set()
    outside: set[int] = set()
    for name, parameter in subject.named_parameters(remove_duplicate=False):
        (inside if name.startswith(f"{path}.") else outside).add(id(parameter))
    return bool(inside & outside)


def _inside(parts: Mapping[str, nn.Module], path: str) -> list[str]:
    return [name for name in parts if name.startswith(f"{path}.")]


def _groups_inside(groups: Sequence[ChannelGroup], path: str) -> list[str]:
    return [g.id for g in groups if all(m.layer.startswith(f"{path}.") for m in g.members)]


def _innermost(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]


def _nested(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.") or other.startswith(f"{path}.")


# ---------------------------------------------------------------- tried out


def _that_can_go(subject: nn.Module, model: Model, paths: Sequence[str]) -> list[str]:
    """Those that can be taken out, all together where that works, which is the rule; else as many as agree."""
    with torch.no_grad(), seeded(0):
        before = to_numpy(model.call(subject, model.example(SAMPLES)))
    good = [path for path in paths if _works(subject, model, [path], before)]
    if not good or _works(subject, model, good, before):
        return good
    together: list[str] = []
    for path in good:
        if _works(subject, model, [*together, path], before):
            together.append(path)
    return together


def _passes_channels_on(
    subject: nn.Module, model: Model, block: Block, groups: Sequence[ChannelGroup]
) -> bool:
    """Whether the network runs without ``block`` where a group that reaches into it is narrower.

    A layer of a plain chain has as many channels on both sides, and they are not the same ones.
    """
    for group in groups:
        inside = [f"{member.layer}.".startswith(f"{block.id}.") for member in group.members]
        if all(inside) or not any(inside) or group.steps == 1:
            continue
        narrower = copy.deepcopy(subject)
        kept = choose([group], {group.id: torch.ones(group.width)}, {group.id: group.width - group.step})
        try:
            apply(narrower, [group], kept, [block])
            with torch.no_grad(), seeded(0):
                model.call(narrower, model.example(SAMPLES))
        except Exception:  # shapes that do not fit any more
            return False
    return True


def _works(subject: nn.Module, model: Model, paths: Sequence[str], before: Mapping[str, np.ndarray]) -> bool:
    """Whether the network runs without these, gives finite outputs, and other ones than before."""
    kept = {path: subject.get_submodule(path) for path in paths}
    take_out(subject, paths)
    try:
        with torch.no_grad(), seeded(0):
            after = to_numpy(model.call(subject, model.example(SAMPLES)))
    except Exception:  # its owner asks a block for more than its output
        return False
    finally:  # a copy for each candidate would cost more than the trial
        for path, part in kept.items():
            subject.set_submodule(path, part)
    try:
        return compare(before, after).relative > SAME
    except DeployCompressError:
        return False
