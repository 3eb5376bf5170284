"""How the heads of an attention module may lie in its projections: hypotheses, the likeliest first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.pruning.groups import ChannelGroup, Heads, Member, Size
from deploycompress.pruning.layers import Axis, Layer, describe, is_transposed_linear

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
KEY_COUNTS = ("num_kv_heads", "num_key_value_heads")  # of heads that several heads of queries share
# What modules call the width of all their heads together; the second kind may mean their input's width too.
WIDTHS = ("attn_dim", "kv_dim", "all_head_size", "all_head_dim", "inner_dim", "split_size")
AMBIGUOUS_WIDTHS = ("embed_dim", "hidden_size", "hidden_dim", "dim")

_BEFORE, _AFTER = r"(?:to_|w_?|linear_|fc_?)?", r"(?:_?(?:proj|projection|lin|linear|attn|layer))?"
ROLES = tuple(
    re.compile(f"{_BEFORE}(?:{names}){_AFTER}")
    for names in ("q|query|queries", "k|key|keys", "v|value|values")
)
PACKED = re.compile(r"|.*qkv.*|c_attn|in_proj|query_key_value")  # nothing: the module itself
PACKED_KEYS = re.compile(r".*kv.*")
PACKED_QUERIES = re.compile(r"(?:to_)?qk(?:_proj)?")
BIAS = re.compile(r"(?:q|k|v|query|key|value)_?bias")
PROJECTION = re.compile(r"proj|out|merge|dense|fc")


class NotUnderstood(Exception):
    """Why there is no hypothesis about an attention module."""


@dataclass(frozen=True, eq=False)
class Part:
    """The projection to queries, keys or values: its channel c is position ``positions[c]`` of a layer's outputs."""

    layer: str  # path below the attention module; "" is the module itself
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """One hypothesis; ``units`` [width] is the head of each channel of a part.

    ``others``: further members along which channels or whole heads lie (biases, a table of relative positions).
    ``projection``: the layer that reads the heads; None where it is outside of the module.
    """

    parts: tuple[Part, ...]
    projection: str | None
    units: Tensor
    others: tuple[Member, ...]
    attributes: Mapping[str, int]  # path of an attribute below the attention module -> its size for one head

    @property
    def width(self) -> int:
        return len(self.units)

    def group(self, path: str = "") -> ChannelGroup:
        """The group of the heads of an attention module at ``path``."""
        everything = torch.arange(self.width)
        members = [Member(below(path, p.layer), "out", everything, p.positions) for p in self.parts]
        if self.projection is not None:
            members.append(Member(below(path, self.projection), "in", everything, everything))
        members += self.others_at(path)
        segments = torch.zeros(self.width, dtype=torch.int64)
        count = int(self.units.max()) + 1
        places = [(name.rpartition("."), each) for name, each in self.attributes.items()]
        sizes = tuple(Size(below(path, owner), leaf, each * count) for (owner, _, leaf), each in places)
        heads = Heads((path,), self.units)
        return ChannelGroup(members[0].layer, self.width, tuple(members), segments, (), heads, sizes)

    def others_at(self, path: str) -> list[Member]:
        return [Member(below(path, m.layer), m.axis, m.channels, m.positions, m.dim) for m in self.others]


def below(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def head_count(module: nn.Module) -> int | None:
    """What a module says of the number of its heads; None for one that says nothing."""
    found = (vars(module).get(name) for name in COUNTS)
    return next((n for n in found if type(n) is int and n > 0), None)


def layouts(attention: nn.Module) -> Iterator[Layout]:
    """Every hypothesis about ``attention``, which has a head count. Raises NotUnderstood when there is none."""
    count = head_count(attention)
    assert count is not None
    if any(vars(attention).get(name, count) != count for name in KEY_COUNTS):
        raise NotUnderstood("several heads share the keys of one")
    dense = {name: layer for name, part in attention.named_modules() if (layer := _dense(part)) is not None}
    arrangements = list(_arrangements(dense, count))
    if not arrangements:
        own = describe(attention)
        packed = isinstance(attention, nn.MultiheadAttention) and isinstance(own, str)
        raise NotUnderstood(
            str(own) if packed else "its projections to queries, keys and values are not recognised"
        )
    if count == 1:
        raise NotUnderstood("it has one head, which stays")
    projecting = {part.layer for part in arrangements[0][0]}
    width = len(arrangements[0][1])
    readers = [n for n, layer in dense.items() if n not in projecting and layer.widths["in"] == width]
    readers.sort(key=lambda name: PROJECTION.search(name) is None)
    kinds = _other_kinds(attention, {*projecting, *readers[:1]}, count, width)
    sizes = _attributes(attention, count, width)
    for (parts, units), reader, others, attributes in product(arrangements, readers or [None], kinds, sizes):
        members = tuple(other.member(units) for other in others)
        yield Layout(parts, reader, units, members, attributes)


def _dense(part: nn.Module) -> Layer | None:
    if isinstance(part, (nn.Linear, nn.MultiheadAttention)) or is_transposed_linear(part):
        layer = describe(part)
        return layer if isinstance(layer, Layer) else None
    return None


# ---------------------------------------------------------------- queries, keys and values


def _arrangements(dense: Mapping[str, Layer], count: int) -> Iterator[tuple[tuple[Part, ...], Tensor]]:
    """The parts, and the head of each of their channels."""
    leaf = {name: name.split(".")[0] for name in dense}
    separate = [[n for n in dense if role.fullmatch(leaf[n])] for role in ROLES]
    packed = [n for n in dense if PACKED.fullmatch(leaf[n])]
    packed += [n for n in dense if n not in packed and _feeds_another(n, dense)]
    packed_keys = [n for n in dense if n not in packed and PACKED_KEYS.fullmatch(leaf[n])]
    packed_queries = [n for n in dense if PACKED_QUERIES.fullmatch(leaf[n])]
    if all(len(found) == 1 for found in separate):
        names = [found[0] for found in separate]
        widths = {dense[name].widths["out"] for name in names}
        if len(widths) == 1 and (width := widths.pop()) % count == 0:
            whole = torch.arange(width)
            for units in _units(width, count):
                yield tuple(Part(name, whole) for name in names), units
    elif len(separate[0]) == 1 and packed_keys:
        query, keys = separate[0][0], packed_keys[0]
        width = dense[query].widths["out"]
        if width % count == 0 and dense[keys].widths["out"] == 2 * width:
            for positions, units in _packings(2, width, count):
                parts = tuple(Part(keys, p) for p in positions)
                yield (Part(query, torch.arange(width)), *parts), units
    elif len(separate[2]) == 1 and packed_queries:
        value, queries = separate[2][0], packed_queries[0]
        width = dense[value].widths["out"]
        if width % count == 0 and dense[queries].widths["out"] == 2 * width:
            for positions, units in _packings(2, width, count):
                parts = tuple(Part(queries, p) for p in positions)
                yield (*parts, Part(value, torch.arange(width))), units
    elif packed and dense[packed[0]].widths["out"] % (3 * count) == 0:
        for positions, units in _packings(3, dense[packed[0]].widths["out"] // 3, count):
            yield tuple(Part(packed[0], p) for p in positions), units


def _feeds_another(name: str, dense: Mapping[str, Layer]) -> bool:
    """Whether its outputs are three times what some other layer reads."""
    third, rest = divmod(dense[name].widths["out"], 3)
    return rest == 0 and any(layer.widths["in"] == third for other, layer in dense.items() if other != name)


def _units(width: int, count: int) -> tuple[Tensor, ...]:
    """The channels of a head beside one another, or one of every head after another."""
    return torch.arange(width) // (width // count), torch.arange(width) % count


def _packings(packed: int, width: int, count: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Positions of each part's channels when ``packed`` parts lie in one layer, and the channels' heads."""
    each = width // count
    channel = torch.arange(width)
    by_head, across = _units(width, count)
    blocks = [channel + j * width for j in range(packed)]
    yield blocks, by_head  # (part, head, channel): timm, torchvision, GPT-2, nn.MultiheadAttention
    # (head, part, channel); what is removed with a head is the same for (head, channel, part).
    yield [(channel // each) * packed * each + j * each + channel % each for j in range(packed)], by_head
    yield blocks, across  # (part, channel, head)


# ---------------------------------------------------------------- what else has the heads


@dataclass(frozen=True)
class _Other:
    """A layer's axis, or a dimension of a bare tensor, along which the channels or the heads lie."""

    layer: str
    axis: Axis
    dim: int | None
    per_head: bool

    def member(self, units: Tensor) -> Member:
        everything = torch.arange(len(units))
        if not self.per_head:
            return Member(self.layer, self.axis, everything, everything, self.dim)
        heads = torch.arange(int(units.max()) + 1)
        first = torch.stack([(units == head).nonzero()[0, 0] for head in heads])
        return Member(self.layer, self.axis, first, heads, self.dim)


def _other_kinds(attention: nn.Module, dense: set[str], count: int, width: int) -> list[tuple[_Other, ...]]:
    """Which other tensors may belong to the heads: all whose shape says so, those that learn, or biases only."""
    biases: list[_Other] = []
    learnt: list[_Other] = []
    fixed: list[_Other] = []
    for name, part in attention.named_modules():
        if name in dense:
            continue
        layer = _dense(part)
        if layer is not None:
            learnt += [_Other(name, axis, None, True) for axis, n in layer.widths.items() if n == count]
            continue
        for leaf, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            dims = [d for d, n in enumerate(tensor.shape) if n == count]
            if not name and BIAS.fullmatch(leaf) and tuple(tensor.shape) == (width,):
                biases.append(_Other(leaf, "out", 0, False))
            elif len(dims) == 1:
                kind = learnt if isinstance(tensor, nn.Parameter) else fixed
                kind.append(_Other(below(name, leaf), "out", dims[0], True))
    return _distinct([(*biases, *learnt, *fixed), (*biases, *learnt), tuple(biases)])


def _attributes(attention: nn.Module, count: int, width: int) -> list[dict[str, int]]:
    """Which sizes may follow the number of heads, and what each is for one head."""
    said = vars(attention)
    heads = {
        below(path, name): 1
        for path, part in attention.named_modules()
        for name in (*COUNTS, *KEY_COUNTS)
        if vars(part).get(name) == count
    }
    if isinstance(attention, nn.MultiheadAttention):
        return [heads]
    widths = {name: width // count for name in WIDTHS if said.get(name) == width}
    ambiguous = {name: width // count for name in AMBIGUOUS_WIDTHS if said.get(name) == width}
    return _distinct([heads | widths | ambiguous, heads | widths, heads])


def _distinct(found: Sequence[Any]) -> list[Any]:
    return [item for i, item in enumerate(found) if item not in found[:i]]
