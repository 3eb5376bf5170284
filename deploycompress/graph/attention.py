"""Attention in the form that ONNX exporters know: four dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

KNOWN = 4  # batch, heads, tokens, width
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class FourDimensions(TorchFunctionMode):
    """Within it, attention over queries of more dimensions (windows, blocks) is computed with those before the last
    three as one batch, and over queries of fewer (one head) with a dimension for it: the same numbers, in the only
    form that torch's exporter takes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(NAMES, args, strict=False)), **(kwargs or {})}
        dimensions = given["query"].dim()
        missing = KNOWN - dimensions
        if missing > 0:
            wide = {n: p for n, p in given.items() if isinstance(p, Tensor) and p.dim() == dimensions}
            given |= {name: _with_heads(part, missing) for name, part in wide.items()}
        if dimensions > KNOWN:
            before = torch.broadcast_shapes(*(given[name].shape[:-2] for name in NAMES[:3]))  # type: ignore[no-untyped-call]
            given |= {name: _flat(given[name], before) for name in NAMES[:3]}
            mask = given.get("attn_mask")
            if mask is not None and mask.dim() >= KNOWN:  # one of fewer dimensions is broadcast
                given["attn_mask"] = _flat(mask, before)
        found = func(**given)
        if missing > 0:
            return found.squeeze(1) if missing == 1 else found[0, 0]
        return found.unflatten(0, before[:-1]) if dimensions > KNOWN else found


def _with_heads(part: Tensor, missing: int) -> Tensor:
    """[(batch,) rows, columns] -> [batch, 1, rows, columns]."""
    for _ in range(missing):
        part = part.unsqueeze(-3)
    return part


def _flat(part: Tensor, before: torch.Size) -> Tensor:
    """[..., rows, columns] -> [product of all of ``before`` but the last, the last, rows, columns]."""
    return part.expand(*before, *part.shape[-2:]).flatten(0, len(before) - 2)
