"""A model in which attention is replaced by sums that tie the same channels, for the dependency trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.pruning.attention.layouts import Layout, below
from deploycompress.pruning.attention.trial import Attention
from deploycompress.pruning.layers import Layer, describe, is_transposed_linear


@dataclass
class Traceable:
    """What the layers of a traceable model stand for in the real one.

    ``names``: their paths there. ``positions``: of one whose outputs are some of those of a packed layer, which.
    ``layouts``: path of a layer that projects to queries, keys or values -> its attention's path and layout.
    """

    names: dict[nn.Module, str] = field(default_factory=dict)
    positions: dict[nn.Module, Tensor] = field(default_factory=dict)
    layouts: dict[str, tuple[str, Layout]] = field(default_factory=dict)


def make_traceable(module: nn.Module, found: Sequence[Attention], *, cut: bool = False) -> Traceable:
    """Replace attention in ``module``, in place, by projected queries + keys + values of each token by itself.

    A sum ties channel c of all three to the projection's input, which is what removing heads needs; that whole
    heads go is said elsewhere. Shapes, and the structure of what a module gives back, stay. The outputs of
    attention that is not understood become constants if ``cut`` says so, if it is opaque, or if it is torch's
    own, which the trace takes for one layer. Recurrent layers become one layer that is not cut, GPT-2's transposed linear layers plain ones.
    """
    traceable = Traceable()
    for attention in found:
        owner = module.get_submodule(attention.path)
        if attention.layout is not None:
            _replace(module, attention.path, _stand_in(owner, attention.path, attention.layout, traceable))
        elif cut or attention.opaque or isinstance(owner, nn.MultiheadAttention):
            _replace(module, attention.path, _StandIn(owner, [], None))
    for name, part in list(module.named_modules()):
        if is_transposed_linear(part):
            _replace(module, name, _plain(part))
        elif isinstance(part, nn.RNNBase) and name:
            one = nn.Linear(part.input_size, (part.proj_size or part.hidden_size) * (1 + part.bidirectional))
            traceable.names[one] = name
            _replace(module, name, _StandIn(part, [one], None))
    for name, part in module.named_modules():
        traceable.names.setdefault(part, name)
    return traceable


def _stand_in(owner: nn.Module, path: str, layout: Layout, traceable: Traceable) -> _StandIn:
    parts = []
    for part in layout.parts:
        layer = describe(owner.get_submodule(part.layer))
        assert isinstance(layer, Layer)
        parts.append(nn.Linear(layer.widths["in"], layout.width, bias=False))
        traceable.names[parts[-1]] = below(path, part.layer)
        traceable.positions[parts[-1]] = part.positions
        traceable.layouts[below(path, part.layer)] = (path, layout)
    projection = None
    if layout.projection is not None:
        projection = _plain(owner.get_submodule(layout.projection))
        traceable.names[projection] = below(path, layout.projection)
    return _StandIn(owner, parts, projection)


def _plain(layer: nn.Module) -> nn.Linear:
    """A linear layer of the same widths; its values do not matter to a trace."""
    described = describe(layer)
    assert isinstance(described, Layer)
    return nn.Linear(described.widths["in"], described.widths["out"], bias=False)


def _replace(module: nn.Module, path: str, part: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, part)


class _StandIn(nn.Module):
    def __init__(self, original: nn.Module, parts: Sequence[nn.Linear], projection: nn.Linear | None) -> None:
        super().__init__()
        self.parts, self.projection = nn.ModuleList(parts), projection
        self._original = [original]  # not a submodule: the trace would follow it

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what others ask of attention: batch_first, num_heads
            return getattr(self.__dict__["_original"][0], name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with torch.no_grad():
            given = self._original[0](*arguments, **named)
        sources = self._sources([*arguments, *named.values()])
        if not sources:
            return given
        mixed: Tensor = self.parts[0](sources[0])
        for part, source in zip(self.parts[1:], sources[1:], strict=True):
            read = part(source)
            # Keys of other tokens than the queries'. Their mean has no token of its own.
            mixed = mixed + (read if source is sources[0] else read.mean(-2, keepdim=True))
        return _with_first(given, mixed if self.projection is None else self.projection(mixed))

    def _sources(self, given: Sequence[Any]) -> list[Tensor]:
        """What each part reads: the first inputs that fit it; one, where there is no other, stands for all."""
        if not len(self.parts):
            return []
        fitting: list[Tensor] = []
        for value in given:
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.shape[-1] == self.parts[min(len(fitting), 2)].in_features
                and (not fitting or value.ndim == fitting[0].ndim)
            ):
                fitting.append(value)
        return [fitting[min(i, len(fitting) - 1)] for i in range(len(self.parts))] if fitting else []


def _with_first(given: Any, output: Tensor) -> Any:
    """``given`` with ``output`` in the place of its first tensor; as it is where the two do not fit."""
    if isinstance(given, Tensor):
        return output if output.shape == given.shape else given
    if isinstance(given, (tuple, list)) and given and isinstance(given[0], Tensor):
        rest = [_with_first(given[0], output), *given[1:]]
        return type(given)(*rest) if hasattr(given, "_fields") else type(given)(rest)
    return given
