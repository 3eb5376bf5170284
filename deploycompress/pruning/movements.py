"""Operators that move elements without computing, and those that reduce dimensions, by their ATen names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from deploycompress.pruning.labels import resized, varying


def _as_it_is(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _reshaped(func: Any, labels: Tensor, shape: Any) -> Tensor:
    return labels.reshape(shape)


def _copied(func: Any, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return labels


def _padded(func: Any, labels: Tensor, pad: Any, value: float = 0) -> Tensor:
    padded = torch.constant_pad_nd(labels, pad, 0)
    dims = {labels.ndim - 1 - i // 2 for i, size in enumerate(pad) if size}
    return padded if dims & varying(labels) else resized(labels, padded.shape)


# operator -> how labels are moved; a reshape of labels may have to copy where that of the values did not
MOVES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(
        [
            "permute",
            "transpose",
            "t",
            "slice",
            "select",
            "split",
            "split_with_sizes",
            "chunk",
            "unbind",
            "cat",
            "stack",
            "squeeze",
            "unsqueeze",
            "expand",
            "roll",
            "flip",
            "index",
            "index_select",
            "repeat",
            "unfold",
            "pixel_shuffle",
            "pixel_unshuffle",
            "channel_shuffle",
            "narrow",
            "movedim",
            "diagonal",
            "gather",
        ],
        _as_it_is,
    ),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy"), _reshaped),
    **dict.fromkeys(("clone", "detach", "alias", "contiguous", "lift_fresh", "_to_copy", "to"), _copied),
    "constant_pad_nd": _padded,
}
# They take a tensor for its shape and kind.
CREATIONS = frozenset(
    f"{prefix}{kind}{suffix}"
    for kind in ("zeros", "ones", "full", "empty", "rand", "randn")
    for prefix, suffix in (("new_", ""), ("", "_like"))
) | {"new_empty_strided"}
SUMS = frozenset({"sum", "linalg_vector_norm", "norm"})  # zeros change nothing in them
REDUCTIONS = SUMS | {
    *("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "argmax", "argmin", "prod"),
    *("_softmax", "_log_softmax", "softmax", "logsumexp", "cumsum", "sort", "topk"),
}
_KEPT = {"_softmax", "_log_softmax", "softmax", "cumsum", "sort", "topk"}  # they keep all dimensions


def reduced_dims(name: str, args: Any, tensor: Tensor, output: Tensor) -> tuple[set[int], bool]:
    """The dimensions that are taken together, and whether they are kept."""
    position = 2 if name in ("linalg_vector_norm", "norm", "topk") else 1
    given = args[position] if len(args) > position else None
    if isinstance(given, bool) or given is None or given == []:
        dims = set(range(tensor.ndim))
    else:
        dims = {d % tensor.ndim for d in ([given] if isinstance(given, int) else given)}
    return dims, name in _KEPT or output.ndim == tensor.ndim
