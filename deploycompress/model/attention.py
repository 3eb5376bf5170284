"""Attention whose heads need not fill the width of its input: what some classes become when heads are cut out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

F = nn.functional
WEAKENED = -100.0  # added to the score of tokens of different regions, as in the original


def allow_any_heads(module: nn.Module | None) -> None:
    """Make ``module`` one whose forward asks its weights how wide a head is, in place; nothing where none is known.

    Its parameters, attributes and methods stay; only the class changes, to a subclass with the same mathematics.
    """
    replaced = replacement(module) if module is not None else None
    if module is not None and replaced is not None:
        module.__class__ = replaced


def replacement(module: nn.Module) -> type[nn.Module] | None:
    """The class that does what ``module`` does with any number of heads; None where there is none or no need."""
    kind = type(module)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _FORWARDS and name not in _SUBCLASSES:
        _SUBCLASSES[name] = _subclass(kind, _FORWARDS[name])
    return _SUBCLASSES.get(name)


def _subclass(base: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    named: dict[str, Any] = {"__module__": __name__, "__doc__": forward.__doc__, "forward": forward}
    if base is nn.MultiheadAttention:
        # torch's fused encoder layer reads it, and works on heads that fill the input only.
        named["_qkv_same_embed_dim"] = property(lambda self: False)
    return type(f"AnyHeads{base.__name__}", (base,), named)


def _multihead(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention`` without an assertion that its heads are as wide as its input together."""
    batched = query.ndim == 3
    if not batched:
        query, key, value = (t.unsqueeze(0) for t in (query, key, value))
    elif not self.batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    weights = self.in_proj_weight.chunk(3)
    biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
    q, k, v = [
        _split(F.linear(t, w, b), self.num_heads).transpose(1, 2)  # [batch, heads, tokens, width]
        for t, w, b in zip((query, key, value), weights, biases, strict=True)
    ]
    if key_padding_mask is not None and not batched:
        key_padding_mask = key_padding_mask.unsqueeze(0)
    if is_causal and key_padding_mask is None and not need_weights:
        attn_mask = None  # the caller says that it is the causal one, which the fused product knows by itself
    mask = _mask(attn_mask, key_padding_mask, self.num_heads, query.dtype)
    dropout = self.dropout if self.training else 0.0
    scores: Tensor | None = None
    if need_weights:
        raw = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = (raw if mask is None else raw + mask).softmax(-1)
        mixed = F.dropout(scores, dropout) @ v
        scores = scores.mean(1) if average_attn_weights else scores
        scores = scores if batched else scores.squeeze(0)
    else:
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal and mask is None
        )
    output = self.out_proj(mixed.transpose(1, 2).flatten(2))
    if not batched:
        return output.squeeze(0), scores
    return (output if self.batch_first else output.transpose(0, 1)), scores


def _split(x: Tensor, *parts: int) -> Tensor:
    """The last dimension as (*parts, what is left)."""
    return x.reshape(*x.shape[:-1], *parts, x.shape[-1] // prod(parts))


def _mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks as one that is added to scores [batch, heads, queries, keys]."""

    def added(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))

    masks = []
    if attn_mask is not None:
        mask = added(attn_mask)
        masks.append(mask.reshape(-1, heads, *mask.shape[1:]) if mask.ndim == 3 else mask)
    if key_padding_mask is not None:
        masks.append(added(key_padding_mask)[:, None, None, :])
    return sum(masks[1:], masks[0]) if masks else None


def _shifted_windows(self: Any, x: Tensor) -> Tensor:
    """Shifted-window attention of Swin (Liu et al., 2021) and Swin V2 (2022); x and the result are [B, H, W, C]."""
    (batch, height, width, channels), window = x.shape, self.window_size
    x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    padded = x.shape[1:3]
    shift = [s if padded[i] > window[i] else 0 for i, s in enumerate(self.shift_size)]
    if any(shift):
        x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    rows, columns = padded[0] // window[0], padded[1] // window[1]
    x = x.reshape(batch, rows, window[0], columns, window[1], channels).transpose(2, 3)
    x = x.reshape(-1, window[0] * window[1], channels)

    bias, logit_scale = self.qkv.bias, getattr(self, "logit_scale", None)
    if logit_scale is not None and bias is not None:  # Swin V2's keys have none
        q_bias, k_bias, v_bias = bias.chunk(3)
        bias = torch.cat([q_bias, torch.zeros_like(k_bias), v_bias])
    qkv = _split(F.linear(x, self.qkv.weight, bias), 3, self.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [windows, heads, tokens, width]
    if logit_scale is not None:
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = cosine * logit_scale.clamp(max=4.605170185988092).exp()  # ln 100
    else:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores + self.get_relative_position_bias()
    if any(shift):
        mask = _regions(padded, window, shift, scores)
        tokens = window[0] * window[1]
        scores = scores.reshape(-1, rows * columns, self.num_heads, tokens, tokens) + mask[:, None]
        scores = scores.reshape(-1, self.num_heads, tokens, tokens)
    scores = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
    x = F.linear((scores @ v).transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)
    x = F.dropout(x, self.dropout, self.training)

    x = x.reshape(batch, rows, columns, window[0], window[1], x.shape[-1]).transpose(2, 3)
    x = x.reshape(batch, *padded, x.shape[-1])
    if any(shift):
        x = torch.roll(x, (shift[0], shift[1]), (1, 2))
    return x[:, :height, :width].contiguous()


def _regions(padded: Any, window: Any, shift: Any, like: Tensor) -> Tensor:
    """[windows, tokens, tokens] what is added where two tokens of a window were not neighbours before the shift."""
    sides = []
    for size, length, step in zip(padded, window, shift, strict=True):
        place = torch.arange(size, device=like.device)
        region = (place >= size - length).long() + (place >= size - step).long()
        sides.append(region if step else torch.zeros_like(region))
    regions = (sides[0][:, None] * 3 + sides[1]).reshape(
        padded[0] // window[0], window[0], padded[1] // window[1], window[1]
    )
    regions = regions.transpose(1, 2).reshape(-1, window[0] * window[1])
    apart = regions[:, None] != regions[:, :, None]
    return apart.to(like.dtype) * WEAKENED


def _relative_grid(self: Any, x: Tensor) -> Tensor:
    """Relative attention of MaxViT (Tu et al., 2022) over the tokens P of each window: [B, G, P, C]."""
    q, k, v = (
        _split(part, self.n_heads).transpose(2, 3)  # [B, G, heads, P, width]
        for part in self.to_qkv(x).chunk(3, dim=-1)
    )
    scores = q @ (k * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
    output: Tensor = self.merge((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))
    return output


_FORWARDS: Mapping[str, Callable[..., Any]] = {
    "torch.nn.modules.activation.MultiheadAttention": _multihead,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _shifted_windows,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": _shifted_windows,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _relative_grid,
}
_SUBCLASSES: dict[str, type[nn.Module]] = {}  # by the name of the class they stand in for
