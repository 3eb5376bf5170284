"""A fresh build made into the model that an architecture and its tensors describe."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from deploycompress.errors import StageFailed
from deploycompress.model.architecture import (
    Architecture,
    TensorForm,
    modules_of,
    named_tensors,
    pairs,
    short,
    tensor_forms,
    type_name,
)
from deploycompress.model.attention import allow_any_heads, replacement
from deploycompress.model.passthrough import take_out
from deploycompress.model.sizes import may_be_set, same_form, shrinks


def edit(fresh: nn.Module, architecture: Architecture) -> None:
    """Take blocks out of ``fresh`` and set sizes in it. Raises StageFailed for what does not belong to it.

    The document may come from anyone: only submodules are taken out, only sizes are set, only to smaller ones
    and where a fresh build has one of the same form (``deploycompress.model.sizes`` says why that is safe), and
    nothing is imported or called. A class changes only to the one that stands in for it.
    """
    for path in architecture.removed:
        if not path or path not in modules_of(fresh):
            raise StageFailed(f"architecture.json takes out a block {path!r} that the model has not")
        take_out(fresh, [path])
    modules = modules_of(fresh)
    for change in architecture.edits:
        part = modules.get(change.path)
        if part is None:
            raise StageFailed(f"architecture.json names a module {change.path!r} that the model has not")
        other = replacement(part)
        if other is not None and change.type == _class_name(other):
            allow_any_heads(part)
        if change.type != type_name(part):
            raise StageFailed(
                f"architecture.json says that {change.path or '(root)'} is a {change.type}; "
                f"the model has a {type_name(part)} there"
            )
        for name, value in change.attributes.items():
            _set_size(part, change.path, name, value)


def _set_size(part: nn.Module, path: str, name: str, value: int | tuple[int, ...]) -> None:
    old = vars(part).get(name)
    new = list(value) if isinstance(old, list) and isinstance(value, tuple) else value
    problem = None
    if not may_be_set(part, name):
        problem = " and only sizes of layers may be set"
    elif not same_form(old, new):
        problem = ""
    elif not shrinks(old, new):
        problem = " and a size may only become smaller"
    if problem is not None:
        raise StageFailed(
            f"architecture.json sets {name} of {path or '(root)'} to {short(value)}; "
            f"the model has {short(old)} there{problem}"
        )
    setattr(part, name, new)


def _class_name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def put_tensors(fresh: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Replace every tensor of ``fresh``; names that share one go on sharing it. Raises StageFailed."""
    expected, ties = tensor_forms(fresh)
    if ties != architecture.ties:
        raise StageFailed(f"architecture.json ties {pairs(architecture.ties)}; the model ties {pairs(ties)}")
    if expected.keys() != architecture.tensors.keys():
        odd = sorted(expected.keys() ^ architecture.tensors.keys())
        raise StageFailed(f"architecture.json and the model disagree on the tensors {', '.join(odd[:4])}")
    if tensors.keys() != architecture.tensors.keys():
        odd = sorted(tensors.keys() ^ architecture.tensors.keys())
        raise StageFailed(
            f"model.safetensors and architecture.json disagree on the tensors {', '.join(odd[:4])}"
        )
    placed: dict[str, Tensor] = {}
    for name, old, kind in list(named_tensors(fresh)):
        kept = architecture.ties.get(name, name)
        if kept not in placed:
            form, tensor = architecture.tensors[kept], tensors[kept]
            _check_form(kept, form, tensor, old, kind)
            placed[kept] = nn.Parameter(tensor, old.requires_grad) if kind == "parameter" else tensor
        owner, _, leaf = name.rpartition(".")
        setattr(fresh.get_submodule(owner), leaf, placed[kept])
    for path, part in modules_of(fresh).items():
        said = _weight_shape(part)
        weight = getattr(part, "weight", None)
        if said is not None and weight is not None and tuple(weight.shape[: len(said)]) != said:
            raise StageFailed(
                f"architecture.json gives {path} sizes for a weight of {list(said)} ...; "
                f"model.safetensors holds {list(weight.shape)}"
            )


def _weight_shape(part: nn.Module) -> tuple[int, ...] | None:
    """The first dimensions of a layer's weight, by the sizes that the layer keeps of itself."""
    match part:
        case _ConvTransposeNd():
            return part.in_channels, part.out_channels // part.groups
        case _ConvNd():
            return part.out_channels, part.in_channels // part.groups
        case nn.Linear():
            return part.out_features, part.in_features
        case _BatchNorm() | _InstanceNorm():
            return (part.num_features,)
        case nn.GroupNorm():
            return (part.num_channels,)
        case nn.LayerNorm():
            return part.normalized_shape
        case nn.Embedding():
            return part.num_embeddings, part.embedding_dim
    return None


def _check_form(name: str, form: TensorForm, tensor: Tensor, old: Tensor, kind: str) -> None:
    if form.kind != kind:
        raise StageFailed(f"architecture.json says that {name} is a {form.kind}; the model has a {kind}")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tuple(tensor.shape) != form.shape or dtype != form.dtype:
        raise StageFailed(
            f"model.safetensors holds {name} as {dtype} {list(tensor.shape)}; "
            f"architecture.json says {form.dtype} {list(form.shape)}"
        )
    if tensor.ndim != old.ndim:
        raise StageFailed(f"{name} has {tensor.ndim} dimensions; the model's has {old.ndim}")
    if tensor.is_floating_point() != old.is_floating_point():
        raise StageFailed(f"{name} is {dtype}; the model's is {str(old.dtype).removeprefix('torch.')}")
