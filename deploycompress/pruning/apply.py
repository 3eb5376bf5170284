"""A plan applied: the channels that go are cut out of every layer of their groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deploycompress.errors import StageFailed
from deploycompress.pruning.groups import ChannelGroup, Kept, removed_positions
from deploycompress.pruning.layers import Axis, Layer, cut, describe, put, tensor


def apply(module: nn.Module, groups: Sequence[ChannelGroup], kept: Kept) -> None:
    """Prune ``module`` in place to the channels ``kept``; groups that are not named stay whole.

    The dependency graph was read once, from the whole model, and every tensor is cut once: what one group
    does to a layer cannot shift what another one means. Raises StageFailed when a realised width is not the
    planned one.
    """
    bare = {m.layer: m.dim for g in groups for m in g.members if m.dim is not None}
    keep: dict[str, dict[Axis, Tensor]] = {}
    for (name, axis), gone in removed_positions(groups, kept).items():
        dim = bare.get(name)
        width = tensor(module, name).shape[dim] if dim is not None else _width(module, name, axis)
        everything = torch.arange(width)
        keep.setdefault(name, {})[axis] = everything[~torch.isin(everything, gone)]
    for name, axes in keep.items():
        dim = bare.get(name)
        if dim is None:
            cut(module.get_submodule(name), axes)
        else:
            owner, _, leaf = name.rpartition(".")
            whole = tensor(module, name).detach()
            put(module.get_submodule(owner), leaf, whole.index_select(dim, axes["out"].to(whole.device)))
    for name, axes in keep.items():
        for axis, indices in axes.items():
            if name not in bare and _width(module, name, axis) != len(indices):
                raise StageFailed(
                    f"layer {name} has {_width(module, name, axis)} {axis}put channels after pruning; "
                    f"planned are {len(indices)}"
                )


def _width(module: nn.Module, name: str, axis: Axis) -> int:
    """What the layer says of itself, held against the shape of its weight."""
    part = module.get_submodule(name)
    layer = describe(part)
    if not isinstance(layer, Layer):
        raise StageFailed(f"layer {name} cannot be read after pruning: {layer}")
    weight = getattr(part, "weight", None)
    if weight is not None and "weight" in layer.tensors:
        inner = layer.runs if layer.runs > 1 and len(layer.tensors["weight"]) == 2 else 1
        for other, dim in layer.tensors["weight"].items():
            stacked = weight.shape[dim] * (inner if dim == 1 else 1)
            if stacked != layer.widths[other]:
                raise StageFailed(
                    f"layer {name} says it has {layer.widths[other]} {other}put channels; "
                    f"its weight is {list(weight.shape)}"
                )
    # One channel a group is left: the layer is depthwise now; or one in all, and a PReLU has one slope.
    return layer.widths.get(axis, layer.widths.get("out", 1))
