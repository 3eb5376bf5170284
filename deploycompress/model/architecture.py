"""How a changed model differs from a fresh build, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from types import FunctionType, MethodType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from deploycompress.config.base import StrictModel
from deploycompress.errors import StageFailed
from deploycompress.model.attention import replacement
from deploycompress.model.passthrough import take_out, taken_out
from deploycompress.model.sizes import LARGEST, MOST_ENTRIES, may_be_set, same_form, shrinks

MOST_DIMENSIONS = 8
MOST_REMOVED = 2**16

Size = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=MOST_ENTRIES)]


class Edit(StrictModel):
    """What to set in one module of a fresh build.

    ``type`` is the module's own, or the one that ``deploycompress.model.attention`` puts in its place.
    """

    path: str
    type: str
    attributes: dict[str, Size | Sizes] = {}


class Factors(StrictModel):
    """A layer of a fresh build in whose place two stand, with ``rank`` channels between them."""

    path: Annotated[str, Field(min_length=1)]
    type: str
    rank: Size


class TensorForm(StrictModel):
    """One parameter or buffer of the changed model."""

    shape: tuple[Annotated[int, Field(strict=True, ge=0, le=2**40)], ...] = Field(max_length=MOST_DIMENSIONS)
    dtype: str
    kind: Literal["parameter", "buffer"]


class Architecture(StrictModel):
    """What makes the model of a fresh build: layers in two factors first, blocks taken out, then the edits of sizes.

    ``removed``: paths of the blocks. Also every tensor's form, and which names share one tensor (alias -> the
    name it is kept under).
    """

    factors: tuple[Factors, ...] = ()
    removed: tuple[str, ...] = Field((), max_length=MOST_REMOVED)
    edits: tuple[Edit, ...] = ()
    tensors: dict[str, TensorForm]
    ties: dict[str, str] = {}


def describe(module: nn.Module, fresh: nn.Module, factors: tuple[Factors, ...] = ()) -> Architecture:
    """What makes ``module`` of a fresh build. Raises StageFailed naming what cannot be described.

    ``fresh``: the build, with ``factors`` in their places already; the blocks that are out of ``module`` are
    taken out of it.
    """
    removed = taken_out(module)
    take_out(fresh, [path for path in removed if path in modules_of(fresh)])
    own, built = modules_of(module), modules_of(fresh)
    for path in own.keys() | built.keys():
        if path not in built:
            raise _undescribed(f"module {path} ({type_name(own[path])}) is not in a fresh build")
        if path not in own:
            raise _undescribed(f"module {path} ({type_name(built[path])}) of a fresh build is gone")
    edits = []
    for path, part in own.items():
        same_class = _same_class(part, built[path])
        if not same_class and type(part) is not replacement(built[path]):
            raise _undescribed(
                f"module {path or '(root)'} is a {type_name(part)}; a fresh build has a {type_name(built[path])}"
            )
        changed = dict(_changed(path, part, built[path]))
        if changed or not same_class:
            edits.append(Edit(path=path, type=type_name(part), attributes=changed))
    tensors, ties = tensor_forms(module)
    if tensor_forms(fresh)[1] != ties:
        raise _undescribed(f"other names share a tensor ({pairs(ties)}) than in a fresh build")
    return Architecture(factors=factors, removed=removed, edits=tuple(edits), tensors=tensors, ties=ties)


def _same_class(part: nn.Module, built: nn.Module) -> bool:
    """Parametrisations (weight normalisation) give every module a class of its own, made from the same base."""
    if is_parametrized(part) and is_parametrized(built):
        return type(part).__bases__ == type(built).__bases__
    return type(part) is type(built)


def type_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, Literal["parameter", "buffer"]]]:
    """Every parameter and buffer under every name it has, buffers that are not persistent included."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, parameter, "parameter"
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield name, buffer, "buffer"


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.named_modules(remove_duplicate=False))


def tensor_forms(module: nn.Module) -> tuple[dict[str, TensorForm], dict[str, str]]:
    forms: dict[str, TensorForm] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor, kind in named_tensors(module):
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        dtype = str(tensor.dtype).removeprefix("torch.")
        forms[name] = TensorForm(shape=tuple(tensor.shape), dtype=dtype, kind=kind)
    return forms, ties


def _changed(path: str, part: nn.Module, built: nn.Module) -> Iterator[tuple[str, int | tuple[int, ...]]]:
    """The allowed attributes that differ. Raises StageFailed for any other difference that counts."""
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        if len(getattr(part, hooks)) != len(getattr(built, hooks)):
            raise _undescribed(f"module {path or '(root)'} has a forward hook that a fresh build has not")
    mine, theirs = _attributes(part), _attributes(built)
    for name in sorted(mine.keys() | theirs.keys()):
        absent = object()
        new, old = mine.get(name, absent), theirs.get(name, absent)
        if new is old or (new is not absent and old is not absent and _same(new, old)):
            continue
        if may_be_set(part, name) and same_form(old, new) and shrinks(old, new):
            yield name, tuple(new) if isinstance(new, list) else new
            continue
        if new is absent or old is absent:
            what = "new" if old is absent else "gone"
            if _counts(old if new is absent else new):
                raise _undescribed(f"attribute {name} of module {path or '(root)'} is {what}")
            continue
        raise _undescribed(
            f"attribute {name} of module {path or '(root)'} changed from {short(old)} to {short(new)}"
        )


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}


def _counts(value: Any) -> bool:
    """Whether a value decides what a forward pass computes: plain data and callables do."""
    return callable(value) or _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _same(new: Any, old: Any) -> bool:
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return new.shape == old.shape and torch.equal(new.cpu(), old.cpu())
    if type(new) is not type(old):
        return False
    if isinstance(new, MethodType):
        return new.__func__ is old.__func__
    if isinstance(new, FunctionType):
        return new is old or new.__code__ is old.__code__
    if isinstance(new, (list, tuple)):
        return len(new) == len(old) and all(_same(a, b) for a, b in zip(new, old, strict=True))
    if isinstance(new, Mapping):
        if all(isinstance(value, Tensor) for value in chain(new.values(), old.values())):
            return True  # a cache that forward passes fill; the probe output checks what it does
        return new.keys() == old.keys() and all(_same(new[k], old[k]) for k in new)
    # Any other object (a configuration, a cache) is taken for the same: the probe output checks what it does.
    return not _is_plain(new) or bool(new == old)


def _undescribed(what: str) -> StageFailed:
    return StageFailed(
        f"the model cannot be kept as a checkpoint: {what}. A checkpoint holds tensors and the sizes of layers; "
        "change the model in the function of model.build instead"
    )


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def pairs(ties: Mapping[str, str]) -> str:
    return ", ".join(f"{a} = {b}" for a, b in list(ties.items())[:4]) or "none"
