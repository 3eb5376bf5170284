"""Attention modules found and understood: of each kind, the first layout whose pruned heads equal masked ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.contracts import Model
from deploycompress.model.outputs import named_outputs
from deploycompress.model.source import seeded
from deploycompress.pruning.apply import apply
from deploycompress.pruning.attention.layouts import Layout, NotUnderstood, head_count, layouts
from deploycompress.pruning.masked import masked

SAMPLES = 2
TOLERANCE = 1e-3  # of max|y|
SCALE = 2.0  # of queries and keys: scores then differ enough for their order to matter

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention module: its layout, or why its heads stay.

    A layout with a reason beside it did not work alone: heads whose width has to be that of what they read may
    be pruned together with it, which only a trial in the whole model can tell.
    """

    path: str
    layout: Layout | None
    reason: str = ""


def find_attention(module: nn.Module, model: Model) -> list[Attention]:
    """Every innermost module of ``module`` with a number of heads and layers to project with, tried out alone.

    Modules of one class with tensors of the same shapes share what was found for the first of them.
    """
    subject = copy.deepcopy(module).cpu().eval()
    # The model as a whole is never taken for one: there is nothing around it to trace.
    owners = {name: part for name, part in subject.named_modules() if name and head_count(part) is not None}
    owners = {
        name: part
        for name, part in owners.items()
        if any(p.ndim > 1 for p in part.parameters()) and not any(_inside(other, name) for other in owners)
    }
    if not owners:
        return []
    first: dict[Any, str] = {}
    for name, part in owners.items():
        first.setdefault(_kind(part), name)
    calls = _calls(subject, model, {name: owners[name] for name in first.values()})
    verdicts = {kind: _verdict(owners[name], calls.get(name)) for kind, name in first.items()}
    found = []
    for name, part in owners.items():
        verdict = verdicts[_kind(part)]
        found.append(Attention(name, *verdict))
    return found


def _inside(inner: str, outer: str) -> bool:
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _kind(part: nn.Module) -> Any:
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in part.named_parameters())
    return type(part), head_count(part), shapes


def _calls(subject: nn.Module, model: Model, owners: Mapping[str, nn.Module]) -> dict[str, Call]:
    """What each owner is first called with; nothing where the model itself does not run."""
    found: dict[str, Call] = {}

    def recording(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if name not in found:
                found[name] = copy.deepcopy((arguments, named))

        return hook

    hooks = [
        part.register_forward_pre_hook(recording(name), with_kwargs=True) for name, part in owners.items()
    ]
    try:
        with torch.no_grad(), seeded(0):
            model.call(subject, model.example(SAMPLES))
    except Exception:  # the trace says so of the whole model
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _verdict(owner: nn.Module, call: Call | None) -> tuple[Layout | None, str]:
    """The layout, or the reason beside the likeliest one or none."""
    if call is None:
        return None, "its forward is not called, or not by the module itself"
    first: tuple[Layout | None, str] | None = None
    try:
        for layout in layouts(owner):
            problem = _problem(owner, layout, call)
            if problem is None:
                return layout, ""
            first = first or (layout, f"no layout of its heads fits: {problem}")
    except NotUnderstood as error:
        return None, str(error)
    return first or (None, "no layout of its heads fits")


def _problem(owner: nn.Module, layout: Layout, call: Call) -> str | None:
    """Why half of the heads cannot be removed by this layout, or None when they can."""
    group = layout.group()
    generator = torch.Generator().manual_seed(0)
    lively = copy.deepcopy(owner)
    with torch.no_grad():
        for parameter in lively.parameters():
            scale = SCALE / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    scores = torch.rand(group.width, generator=generator)
    kept = {group.id: group.keep(scores, max(1, group.steps // 2) * group.step)}
    pruned = copy.deepcopy(lively)
    try:
        apply(pruned, [group], kept)
        candidate = _output(pruned, call)
        reference = _output(masked(lively, [group], kept), call)
    except Exception as error:  # a module whose sizes do not fit may raise anything
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return f"its forward fails without some of them ({type(error).__name__}: {first})"
    if layout.projection is None and reference.shape[-1] == group.width:
        reference = reference.index_select(-1, kept[group.id])
    if reference.shape != candidate.shape:
        return f"its output becomes {list(candidate.shape)}; expected {list(reference.shape)}"
    apart = float((reference - candidate).abs().max() / reference.abs().max().clamp(min=1e-30))
    return None if apart <= TOLERANCE else f"pruned and masked differ by {apart:.2g} of the largest output"


def _output(attention: nn.Module, call: Call) -> Tensor:
    """The first tensor that the module gives; it must be finite."""
    arguments, named = copy.deepcopy(call)
    with torch.no_grad(), seeded(0):
        first = next(iter(named_outputs(attention(*arguments, **named)).values()))
    return first
