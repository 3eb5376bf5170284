"""A plan applied: the channels that go are cut out of every layer of their groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploycompress.errors import StageFailed
from deploycompress.model.attention import allow_any_heads
from deploycompress.model.passthrough import take_out
from deploycompress.pruning.groups import ChannelGroup, Kept, Size, removed_positions
from deploycompress.pruning.layers import Axis, Layer, bare_tensor, cut, describe, put
from deploycompress.pruning.shared import holders, tie_again

if TYPE_CHECKING:
    from deploycompress.pruning.blocks import Block


def apply(
    module: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, removed: Sequence[Block] = ()
) -> None:
    """Prune ``module`` in place to the channels ``kept``, without the blocks ``removed``.

    Groups that are not named stay whole; those inside a removed block go with it.

    The groups were found once, in the whole model, and every tensor is cut once: what one group
    does to a layer cannot shift what another one means. Raises StageFailed when a realised width is not the
    planned one.
    """
    gone_too = {id for block in removed for id in block.groups}
    groups = [group for group in groups if group.id not in gone_too]
    bare = {m.layer: m.dim for g in groups for m in g.members if m.dim is not None}
    keep: dict[str, dict[Axis, Tensor]] = {}
    for (name, axis), gone in removed_positions(groups, kept).items():
        dim = bare.get(name)
        width = bare_tensor(module, name).shape[dim] if dim is not None else _width(module, name, axis)
        everything = torch.arange(width)
        keep.setdefault(name, {})[axis] = everything[~torch.isin(everything, gone)]
    before = holders(module)
    for name, axes in keep.items():
        dim = bare.get(name)
        if dim is None:
            cut(module.get_submodule(name), axes)
        else:
            owner, _, leaf = name.rpartition(".")
            whole = bare_tensor(module, name).detach()
            put(module.get_submodule(owner), leaf, whole.index_select(dim, axes["out"].to(whole.device)))
    tie_again(module, before)
    for name, axes in keep.items():
        for axis, indices in axes.items():
            if name not in bare and _width(module, name, axis) != len(indices):
                raise StageFailed(
                    f"layer {name} has {_width(module, name, axis)} {axis}put channels after pruning; "
                    f"planned are {len(indices)}"
                )
    _tell_owners(module, groups, kept, keep)
    take_out(module, [block.id for block in removed])


def _tell_owners(
    module: nn.Module, groups: Sequence[ChannelGroup], kept: Kept, touched: Iterable[str]
) -> None:
    """Modules learn the sizes that they ask for, and attention goes on without what its class takes for granted."""
    for group in groups:
        if group.id in kept:
            for size in group.sizes:
                _shrink(
                    module.get_submodule(size.owner), size, group.width - len(kept[group.id]), group.width
                )
    paths = {
        ".".join(parts[:n]) for parts in (name.split(".") for name in touched) for n in range(len(parts) + 1)
    }
    for path in sorted(paths):
        part = _child(module, path)
        allow_any_heads(part)
        for name, value in vars(part).items() if part is not None else ():
            if not name.startswith("_") and _is_cache(value):
                value.clear()


def _is_cache(value: Any) -> bool:
    """Tensors that a module has computed from its weights and remembers (biases of attention in LeViT)."""
    return type(value) is dict and bool(value) and all(type(tensor) is Tensor for tensor in value.values())


def _shrink(owner: nn.Module, size: Size, removed: int, width: int) -> None:
    gone, rest = divmod(size.amount * removed, width)
    assert rest == 0, f"{size}: {removed} of {width} channels go"
    old = getattr(owner, size.attribute)
    if size.index is None:
        setattr(owner, size.attribute, old - gone)
        return
    entries = list(old)
    entries[size.index] -= gone
    setattr(owner, size.attribute, type(old)(entries))


def _child(module: nn.Module, path: str) -> nn.Module | None:
    """The module at ``path``; None where a bare parameter is."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _width(module: nn.Module, name: str, axis: Axis) -> int:
    """What the layer says of itself, held against the shape of its weight."""
    part = module.get_submodule(name)
    layer = describe(part)
    if not isinstance(layer, Layer):
        raise StageFailed(f"layer {name} cannot be read after pruning: {layer}")
    weight = getattr(part, layer.weight, None)
    if weight is not None and layer.weight in layer.tensors:
        inner = layer.runs if layer.runs > 1 and len(layer.tensors[layer.weight]) == 2 else 1
        for other, dim in layer.tensors[layer.weight].items():
            stacked = weight.shape[dim] * (inner if dim == 1 else 1)
            if stacked != layer.widths[other]:
                raise StageFailed(
                    f"layer {name} says it has {layer.widths[other]} {other}put channels; "
                    f"its weight is {list(weight.shape)}"
                )
    if (
        axis not in layer.widths
    ):  # one channel a run is left, it is depthwise now; or one in all: a PReLU's slope
        return layer.widths.get("out", 1) // (layer.multiplier if axis == "in" else 1)
    return layer.widths[axis]
