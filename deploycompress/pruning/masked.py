"""The unpruned model with channels masked: what a pruned one must equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deploycompress.pruning.groups import ChannelGroup, Kept, removed_positions
from deploycompress.pruning.layers import Axis, Layer, bare_tensor, cut, describe


def masked(module: nn.Module, groups: Sequence[ChannelGroup], kept: Kept) -> nn.Module:
    """A copy of ``module``, of the same shapes, in which the channels that are not ``kept`` count nothing.

    Their slices are zero in every layer that makes or reads them. A normalisation across channels takes its
    statistics over the channels that stay, as it will in the pruned model.
    """
    copied = copy.deepcopy(module).eval()
    bare = {m.layer: m.dim for g in groups for m in g.members if m.dim is not None}
    removed = removed_positions(groups, kept)
    with torch.no_grad():
        for (name, axis), gone in removed.items():
            dim = bare.get(name)
            if dim is not None:
                whole = bare_tensor(copied, name)
                whole.index_fill_(dim, gone.to(whole.device), 0.0)
            else:
                part = copied.get_submodule(name)
                if not normalises_weight(part):
                    _mask(part, axis, gone)
                elif axis == "out" or (name, "out") not in removed:  # both axes at once
                    axes: tuple[Axis, ...] = ("out", "in")
                    both = {a: removed[name, a] for a in axes if (name, a) in removed}
                    part.register_forward_hook(_over_the_rest(part, both))
    return copied


def _mask(part: nn.Module, axis: Axis, gone: Tensor) -> None:
    layer = describe(part)
    assert isinstance(layer, Layer), layer
    if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
        part.register_forward_hook(_over_the_rest(part, {"out": gone}))
        return
    for name, dims in layer.tensors.items():
        own = getattr(part, name, None)
        if own is None or axis not in dims or name == "running_var":
            continue
        if layer.runs > 1 and len(dims) == 2 and dims[axis] == 1:
            _mask_inner(own, layer, axis, gone)
        else:
            own.index_fill_(dims[axis], gone.to(own.device), 0.0)


def _mask_inner(weight: Tensor, layer: Layer, axis: Axis, gone: Tensor) -> None:
    """Dimension 1 of a grouped weight counts inside a run; the runs lie along dimension 0."""
    size, rows = layer.widths[axis] // layer.runs, weight.shape[0] // layer.runs
    for position in gone.tolist():
        run, inside = divmod(position, size)
        weight[run * rows : (run + 1) * rows, inside] = 0.0


def normalises_weight(part: nn.Module) -> bool:
    """Whether it is a convolution that standardises its weight over its inputs, so that a scale cancels out."""
    if not isinstance(part, _ConvNd) or type(part).__module__.startswith("torch."):
        return False
    layer = describe(part)
    if not isinstance(layer, Layer) or "in" not in layer.widths:
        return False
    doubled = copy.deepcopy(part)
    shape = [d * (k - 1) + 1 for d, k in zip(part.dilation, part.kernel_size, strict=True)]
    given = torch.ones(1, part.in_channels, *shape, device=part.weight.device).cumsum(1).cos()
    with torch.no_grad():
        doubled.weight.mul_(2)
        one, other = part(given), doubled(given)
    return bool((one - other).abs().max() < 0.01 * one.abs().max())


def _over_the_rest(part: nn.Module, gone: Mapping[Axis, Tensor]) -> Callable[..., Tensor]:
    """A forward hook that lets a cut copy of ``part`` do the work, and gives zeros for what is gone."""
    layer = describe(part)
    assert isinstance(layer, Layer), layer
    keep: dict[Axis, Tensor] = {}
    for axis, positions in gone.items():
        everything = torch.arange(layer.widths[axis])
        keep[axis] = everything[~torch.isin(everything, positions)]
    smaller = copy.deepcopy(part)
    smaller._forward_hooks.clear()
    cut(smaller, keep)
    read = keep.get("in") if "in" in layer.widths else keep["out"]

    def rest(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        dim = _channel_dim(part, arguments[0], output)
        given = arguments[0] if read is None else arguments[0].index_select(dim, read.to(output.device))
        found: Tensor = smaller.to(output.device)(given)
        if "out" not in keep:
            return found
        return torch.zeros_like(output).index_copy(dim, keep["out"].to(output.device), found)

    return rest


def _channel_dim(norm: nn.Module, given: Tensor, output: Tensor) -> int:
    """Where a normalisation has its channels: 1 in a group norm; a layer norm may be either kind."""
    if not isinstance(norm, nn.LayerNorm):
        return 1
    width = norm.normalized_shape[0]
    if given.shape[-1] != width:
        return 1
    if given.ndim < 3 or given.shape[1] != width:
        return -1
    last = nn.functional.layer_norm(given, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return -1 if torch.allclose(last, output, atol=1e-5) else 1
