"""Layers in two factors: ``Sequential(layer to rank channels, layer from rank channels)`` in a layer's place."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from torch import nn

from deploycompress.errors import StageFailed
from deploycompress.model.architecture import Factors, modules_of, type_name
from deploycompress.model.source import seeded

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FACTORED = (nn.Linear, *CONVOLUTIONS)  # these very types: a subclass may compute something else


def full_rank(layer: nn.Module) -> int:
    """The rank at which two factors can give back any weight: the smaller side of [out, in * kernel]."""
    assert isinstance(layer, FACTORED)
    out, *inner = layer.weight.shape
    return int(min(out, prod(inner)))


def two_factors(layer: nn.Module, rank: int) -> nn.Sequential:
    """Two fresh layers in the place of ``layer``: all of its kernel, stride and padding in the first one, which has
    no bias, then a linear layer or a 1x1 convolution. Their values are not those of ``layer``.
    """
    with seeded(0):  # the initial values are replaced; the caller's random numbers go on as they were
        if isinstance(layer, nn.Linear):
            first: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
            second: nn.Module = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        else:
            assert isinstance(layer, CONVOLUTIONS) and layer.groups == 1
            kind = type(layer)
            first = kind(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=False,
                padding_mode=layer.padding_mode,
            )
            second = kind(rank, layer.out_channels, 1, bias=layer.bias is not None)
    factors = nn.Sequential(first, second).to(layer.weight)
    return factors.train(layer.training)


def put(module: nn.Module, path: str, part: nn.Module) -> None:
    """Replace the module at ``path``."""
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, part)


def find_factors(module: nn.Module, fresh: nn.Module) -> tuple[Factors, ...]:
    """Where ``module`` has two factors and a fresh build has one layer."""
    own = modules_of(module)
    found = []
    for path, built in modules_of(fresh).items():
        part = own.get(path)
        if type(built) not in FACTORED or type(part) is not nn.Sequential:
            continue
        if [type(factor) for factor in part] == 2 * [type(built)]:
            first = part[0]
            assert isinstance(first, FACTORED)
            if first.bias is None and first.weight.shape[0] <= full_rank(built):
                found.append(Factors(path=path, type=type_name(built), rank=first.weight.shape[0]))
    return tuple(found)


def put_factors(fresh: nn.Module, factors: Iterable[Factors]) -> None:
    """Put two factors in the place of the named layers. Raises StageFailed when they do not belong to ``fresh``.

    The document may come from anyone: only plain layers are replaced, by layers of their own type, no larger
    than the whole of them.
    """
    for named in factors:
        layer = modules_of(fresh).get(named.path)
        if layer is None or type_name(layer) != named.type:
            there = "none" if layer is None else f"a {type_name(layer)}"
            raise StageFailed(
                f"architecture.json has a {named.type} {named.path!r} in two factors; the model has {there} there"
            )
        if type(layer) not in FACTORED or getattr(layer, "groups", 1) != 1:
            raise StageFailed(f"architecture.json has {named.path!r} in two factors, which is no plain layer")
        if named.rank > full_rank(layer):
            raise StageFailed(
                f"architecture.json gives the factors of {named.path!r} the rank {named.rank}; it is at most "
                f"{full_rank(layer)}"
            )
        put(fresh, named.path, two_factors(layer, named.rank))
