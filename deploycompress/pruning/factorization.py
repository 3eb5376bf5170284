"""Low-rank factorisation: which layers can be two smaller ones, of what rank, and the best such pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.model.lowrank import FACTORED, full_rank, put, two_factors
from deploycompress.model.sparse import sparse_weights
from deploycompress.pruning.discovery import ROOTS
from deploycompress.pruning.groups import Unpruned

ALIGN = 8  # ranks are multiples of it, as widths are

Shape = tuple[int, ...]
Forward = Callable[[nn.Module], Any]  # runs a module on inputs of the caller's choice


@dataclass(frozen=True)
class Candidate:
    """A layer that may become two, with the rank chosen and the shape of what it reads."""

    layer: str
    rank: int
    break_even: float  # the rank at which two factors cost what the layer costs
    shape: Shape


def break_even(layer: nn.Module) -> float:
    """The rank at which two factors have the parameters and MACs of the layer: in*k * out / (in*k + out)."""
    assert isinstance(layer, FACTORED)
    out, *inner = layer.weight.shape
    return prod(inner) * out / (prod(inner) + out)


def factorized(layer: nn.Module, rank: int) -> nn.Sequential:
    """The two factors of ``rank`` that are nearest to the layer, by the truncated SVD (Eckart, Young 1936).

    W [out, in*k] = U S V^T; the first factor is sqrt(S) V^T, the second U sqrt(S), so that both are of one scale.
    For convolutions: Zhang et al., "Accelerating Very Deep Convolutional Networks", section 3.
    """
    assert isinstance(layer, FACTORED)
    left, values, right = torch.linalg.svd(layer.weight.detach().double().flatten(1), full_matrices=False)
    scale = values[:rank].sqrt()
    pair = two_factors(layer, rank)
    first, second = pair
    assert isinstance(first, FACTORED) and isinstance(second, FACTORED)
    with torch.no_grad():
        first.weight.copy_((scale[:, None] * right[:rank]).reshape(first.weight.shape))
        second.weight.copy_((left[:, :rank] * scale).reshape(second.weight.shape))
        if layer.bias is not None and second.bias is not None:
            second.bias.copy_(layer.bias)
    return pair


def rank_by_share(layer: nn.Module, share: float) -> int:
    """That share of the break-even rank, down to a multiple of eight, at least eight."""
    return max(ALIGN, int(share * break_even(layer)) // ALIGN * ALIGN)


def rank_by_energy(layer: nn.Module, energy: float) -> int:
    """The least multiple of eight whose singular values hold that share of the sum of all their squares."""
    assert isinstance(layer, FACTORED)
    squares = torch.linalg.svdvals(layer.weight.detach().double().flatten(1)).square().cumsum(0)
    least = int((squares < energy * squares[-1]).sum()) + 1
    return ceil(least / ALIGN) * ALIGN


def find_candidates(
    module: nn.Module,
    forward: Forward,
    choose_rank: Callable[[nn.Module], int],
    exclude: Sequence[str] = (),
) -> tuple[tuple[Candidate, ...], tuple[Unpruned, ...]]:
    """Layers that two factors of the chosen rank make cheaper, each tried out; and the others with the reason."""
    shapes = _shapes(module, forward)
    refused = dict.fromkeys(_shared(module), "other layers use its weight too")
    refused |= {name.rpartition(".")[0]: "its weight is sparse" for name in sparse_weights(module)}
    found: list[Candidate] = []
    whole: list[Unpruned] = []
    for name, part in [(n, p) for n, p in module.named_modules() if isinstance(p, ROOTS)]:
        reason = _obstacle(name, part, shapes, refused, exclude)
        if reason is None:
            rank, limit = choose_rank(part), break_even(part)
            if rank >= min(limit, full_rank(part)):
                reason = f"two factors of rank {rank} cost no less: they do below rank {limit:.1f}"
            else:
                reason = _trial(module, name, part, rank, forward)
        if reason is None:
            found.append(Candidate(name, rank, limit, shapes[name]))
        else:
            whole.append(Unpruned(name, reason))
    return tuple(found), tuple(whole)


def apply(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put two factors in the place of the named layers of ``module``."""
    for name, rank in ranks.items():
        put(module, name, factorized(module.get_submodule(name), rank))


def _obstacle(
    name: str,
    part: nn.Module,
    shapes: Mapping[str, Shape],
    refused: Mapping[str, str],
    exclude: Sequence[str],
) -> str | None:
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "excluded by the configuration"
    if type(part) not in FACTORED or not name:
        return f"a {type(part).__name__} is not factorised"
    if getattr(part, "groups", 1) != 1:
        return "a grouped convolution is not factorised"
    if getattr(part, "padding_mode", "zeros") != "zeros":
        return "a convolution that pads with other than zeros is not factorised"
    if part._forward_hooks or part._forward_pre_hooks:
        return "it has a forward hook"
    if name in refused:
        return refused[name]
    if name not in shapes:
        return "its forward is not called, or not by the module itself"
    dimensions = part.weight.ndim if isinstance(part.weight, Tensor) else 0
    if dimensions > 2 and len(shapes[name]) != dimensions:
        return "its input has no batch dimension"
    return None


def _shapes(module: nn.Module, forward: Forward) -> dict[str, Shape]:
    """Layer -> the shape of what it read first."""
    seen: dict[str, Shape] = {}

    def watch(name: str) -> Any:
        def note(part: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
            given = next((a for a in (*arguments, *keywords.values()) if isinstance(a, Tensor)), None)
            if given is not None:
                seen.setdefault(name, tuple(given.shape))

        return note

    parts = [(n, p) for n, p in module.named_modules() if isinstance(p, ROOTS)]
    handles = [p.register_forward_pre_hook(watch(n), with_kwargs=True) for n, p in parts]
    try:
        with torch.no_grad():
            forward(module)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _shared(module: nn.Module) -> frozenset[str]:
    """Layers that use a parameter which has another name too."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return frozenset(name for several in names.values() if len(several) > 1 for name in several)


def _trial(module: nn.Module, name: str, part: nn.Module, rank: int, forward: Forward) -> str | None:
    """Why the model does not run with two factors there, or None: its code may ask the layer for its weight."""
    put(module, name, two_factors(part, rank))
    try:
        with torch.no_grad():
            forward(module)
    except Exception as error:  # the user's code may raise anything
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return f"the model does not run with two layers in its place: {type(error).__name__}: {first}"
    finally:
        put(module, name, part)
    return None
