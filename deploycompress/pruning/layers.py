"""Where the channels of each kind of layer lie in its tensors, and how they are cut out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

Axis = Literal["out", "in"]


@dataclass(frozen=True)
class Layer:
    """One module's channels: how many there are along each axis, and the dimension they have in each tensor.

    A layer that gives back the channels it gets (a normalisation, a depthwise convolution) has "out" only.
    ``runs``: grouped convolutions and group normalisation work on that many equal runs of channels.
    ``multiplier``: outputs that a depthwise convolution makes of each input.
    ``weight``: the name of the tensor that turns channels into others.
    """

    widths: Mapping[Axis, int]
    tensors: Mapping[str, Mapping[Axis, int]]
    attributes: Mapping[Axis, tuple[str, ...]]
    runs: int = 1
    multiplier: int = 1
    weight: str = "weight"


def describe(module: nn.Module) -> Layer | str:
    """The layer, or why it is not cut."""
    for types, make in _KINDS:
        if isinstance(module, types):
            made = make(module)
            return made if isinstance(made, str) else _with_extras(module, made)
    if is_transposed_linear(module):
        return _with_extras(module, _transposed_linear(module))
    return f"{type(module).__name__} is not a kind of layer that is cut"


def _with_extras(module: nn.Module, layer: Layer) -> Layer | str:
    """A subclass may have tensors of its own with an entry for each output channel (a gain).

    Weight and spectral normalisation compute a weight from other tensors; these are not cut.
    """
    weight = getattr(module, layer.weight, None)
    if weight is not None and not isinstance(weight, nn.Parameter):
        return f"the weight of this {type(module).__name__} is computed from other tensors"
    width = layer.widths.get("out", 1)
    extras: dict[str, Mapping[Axis, int]] = {
        name: {"out": own.shape.index(width)}
        for name, own in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if name not in layer.tensors and own.numel() == width > 1 and width in own.shape
    }
    return replace(layer, tensors={**layer.tensors, **extras}) if extras else layer


def has_both_axes(layer: Layer) -> bool:
    """Whether it turns some channels into others: a dense or grouped convolution, a linear layer."""
    return "in" in layer.widths


# ---------------------------------------------------------------- the kinds


def _convolution(module: nn.Module) -> Layer:
    assert isinstance(module, _ConvNd)
    groups, c_in, c_out = module.groups, module.in_channels, module.out_channels
    transposed = isinstance(module, _ConvTransposeNd)
    if groups > 1 and groups == c_in and c_out % groups == 0 and (c_out == c_in or not transposed):
        return Layer(
            {"out": c_out},
            {"weight": {"out": 0}, "bias": {"out": 0}},
            {"out": ("in_channels", "out_channels", "groups")},
            multiplier=c_out // groups,
        )
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    return Layer(
        {"out": c_out, "in": c_in},
        {"weight": {"out": out_dim, "in": in_dim}, "bias": {"out": 0}},
        {"out": ("out_channels",), "in": ("in_channels",)},
        groups,
    )


def _linear(module: nn.Module) -> Layer:
    assert isinstance(module, nn.Linear)
    return Layer(
        {"out": module.out_features, "in": module.in_features},
        {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}},
        {"out": ("out_features",), "in": ("in_features",)},
    )


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is a ``Conv1D`` of transformers (GPT-2): a linear layer whose weight is [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module.weight, "ndim", 0) == 2


def _transposed_linear(module: nn.Module) -> Layer:
    assert isinstance(module.weight, Tensor)
    width_in, width_out = module.weight.shape
    attributes: dict[Axis, tuple[str, ...]] = {"out": ("nf",)}
    if hasattr(module, "nx"):
        attributes["in"] = ("nx",)
    return Layer(
        {"out": width_out, "in": width_in}, {"weight": {"out": 1, "in": 0}, "bias": {"out": 0}}, attributes
    )


def _packed_attention(module: nn.Module) -> Layer | str:
    """The projection to queries, keys and values; the one to the output is a layer of its own, ``out_proj``."""
    assert isinstance(module, nn.MultiheadAttention)
    weight = module.in_proj_weight
    if weight is None:
        return "attention with keys or values of another width than the queries"
    if module.bias_k is not None or module.add_zero_attn:
        return "attention with a learned or zero key beside those of its input"
    return Layer(
        {"out": weight.shape[0], "in": weight.shape[1]},
        {"in_proj_weight": {"out": 0, "in": 1}, "in_proj_bias": {"out": 0}},
        {"in": ("embed_dim", "kdim", "vdim")},
        weight="in_proj_weight",
    )


def _batch_norm(module: nn.Module) -> Layer:
    assert isinstance(module, (_BatchNorm, _InstanceNorm))
    names = ("weight", "bias", "running_mean", "running_var")
    return Layer({"out": module.num_features}, {n: {"out": 0} for n in names}, {"out": ("num_features",)})


def _layer_norm(module: nn.Module) -> Layer | str:
    assert isinstance(module, nn.LayerNorm)
    if len(module.normalized_shape) != 1:
        return f"layer normalisation over {len(module.normalized_shape)} dimensions"
    return Layer(
        {"out": module.normalized_shape[0]},
        {"weight": {"out": 0}, "bias": {"out": 0}},
        {"out": ("normalized_shape",)},
    )


def _group_norm(module: nn.Module) -> Layer:
    assert isinstance(module, nn.GroupNorm)
    return Layer(
        {"out": module.num_channels},
        {"weight": {"out": 0}, "bias": {"out": 0}},
        {"out": ("num_channels",)},
        module.num_groups,
    )


def _prelu(module: nn.Module) -> Layer:
    assert isinstance(module, nn.PReLU)
    if module.num_parameters == 1:  # one slope for all channels: nothing to cut
        return Layer({}, {}, {})
    return Layer({"out": module.num_parameters}, {"weight": {"out": 0}}, {"out": ("num_parameters",)})


def _embedding(module: nn.Module) -> Layer:
    assert isinstance(module, nn.Embedding)
    return Layer({"out": module.embedding_dim}, {"weight": {"out": 1}}, {"out": ("embedding_dim",)})


_KINDS = (
    ((_ConvNd,), _convolution),
    ((nn.Linear,), _linear),
    ((_BatchNorm, _InstanceNorm), _batch_norm),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.PReLU,), _prelu),
    ((nn.Embedding,), _embedding),
    ((nn.MultiheadAttention,), _packed_attention),
)


# ---------------------------------------------------------------- cutting


def cut(module: nn.Module, keep: Mapping[Axis, Tensor]) -> None:
    """Keep only the channels ``keep`` (ascending int64) along each axis, in place."""
    layer = describe(module)
    assert isinstance(layer, Layer), layer
    for name, dims in layer.tensors.items():
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        if layer.runs > 1 and len(dims) == 2:
            new = _cut_grouped(tensor, dims, layer, keep)
        else:
            new = tensor.detach()
            for axis, indices in keep.items():
                if axis in dims:
                    new = new.index_select(dims[axis], indices.to(new.device))
        put(module, name, new)
    for axis, indices in keep.items():
        for attribute in layer.attributes.get(axis, ()):
            old = getattr(module, attribute)
            size = len(indices) // (1 if attribute == "out_channels" else layer.multiplier)
            setattr(module, attribute, (size,) if isinstance(old, tuple) else size)


def _cut_grouped(
    tensor: Tensor, dims: Mapping[Axis, int], layer: Layer, keep: Mapping[Axis, Tensor]
) -> Tensor:
    """A grouped weight holds every run's own inputs in one dimension: cut run by run.

    The runs are stacked along dimension 0; dimension 1 counts inside a run.
    """
    stacked: Axis = "out" if dims["out"] == 0 else "in"
    inner: Axis = "in" if stacked == "out" else "out"
    rows, columns = layer.widths[stacked] // layer.runs, layer.widths[inner] // layer.runs
    parts = []
    for run in range(layer.runs):
        part = tensor.detach()[run * rows : (run + 1) * rows]
        for axis, size, dim in ((stacked, rows, 0), (inner, columns, 1)):
            if axis in keep:
                inside = keep[axis] // size == run
                part = part.index_select(dim, (keep[axis][inside] - run * size).to(part.device))
        parts.append(part)
    return torch.cat(parts)


def bare_tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its path. Raises AttributeError where there is none."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer by one that may have another shape."""
    old = getattr(module, name)
    new = tensor.contiguous().clone()
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
