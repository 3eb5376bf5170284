"""Everything that hangs together with one layer's output channels, followed along the dependency graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch_pruning.dependency import index_mapping

from deploycompress.pruning.dependency_graph import is_input_side
from deploycompress.pruning.layers import Axis

MOST_PAIRS = 2**22  # of channel and position at one node; a graph that is not understood makes them grow
_SHIFT = 32  # a pair as one number: channel in the high bits, position in the low ones


class NotFollowed(Exception):
    """Why the graph gives no answer."""


@dataclass(frozen=True, eq=False)
class Reached:
    """Root channel ``channels[i]`` lies at ``positions[i]`` of this node's input or output side."""

    node: Any  # torch_pruning.dependency.node.Node
    axis: Axis
    channels: np.ndarray  # int64
    positions: np.ndarray  # int64


def closure(graph: Any, root: nn.Module, width_of: Callable[[Any, Axis], int | None]) -> list[Reached]:
    """All nodes that must change with the output channels of ``root``, the root first.

    Torch-Pruning's own walk lists indices in Python, forgets which channels share a position, and does not end
    on some graphs; this one follows the same edges with arrays and gives up where they make no sense.
    ``width_of``: how many positions one side of a node has, None where it is not known. Raises NotFollowed.
    """
    pruner = graph.get_pruner_of_module(root)
    width = pruner.get_out_channels(root)
    start = (graph.module2node[root], pruner.prune_out_channels)
    pairs: dict[tuple[Any, Any], np.ndarray] = {start: _pack(np.arange(width), np.arange(width))}
    pending = [start]
    while pending:
        place = pending.pop()
        node, handler = place
        for edge in node.dependencies:
            if not edge.is_triggered_by(handler):
                continue
            mapped = pairs[place]
            for mapping in edge.index_mapping:
                if mapping is not None:
                    mapped = _mapped(mapping, mapped)
            if not len(mapped):
                continue
            target = (edge.target, edge.handler)
            _check(mapped, edge.target, width_of(edge.target, _side(graph, edge.handler)))
            known = pairs.get(target)
            merged = np.unique(mapped) if known is None else np.union1d(known, mapped)
            if known is None or len(merged) > len(known):
                pairs[target] = merged
                pending.append(target)
    return [Reached(node, _side(graph, handler), *_unpack(found)) for (node, handler), found in pairs.items()]


def _side(graph: Any, handler: Any) -> Axis:
    return "in" if is_input_side(graph, handler) else "out"


def _check(pairs: np.ndarray, node: Any, width: int | None) -> None:
    if len(pairs) > MOST_PAIRS:
        raise NotFollowed(f"its channels multiply at {node.name}")
    highest = int(_unpack(pairs)[1].max())
    if width is not None and highest >= width:
        raise NotFollowed(f"they fall outside the {width} channels of {node.name}")


def _mapped(mapping: Any, pairs: np.ndarray) -> np.ndarray:
    """What a step through a flatten, concat, split or slice does to positions."""
    channels, positions = _unpack(pairs)
    match mapping:
        case index_mapping._FlattenIndexMapping():
            stride = mapping._stride
            if stride < 1:
                raise NotFollowed(f"a reshape has the stride {stride}")
            if mapping.reverse:
                return _pack(channels, positions // stride)
            if len(pairs) * stride > MOST_PAIRS:
                raise NotFollowed(f"its channels multiply by {stride} in a reshape")
            spread = positions[:, None] * stride + np.arange(stride)
            return _pack(channels.repeat(stride), spread.ravel())
        case index_mapping._ConcatIndexMapping():
            return _window(channels, positions, mapping.offset, into=mapping.reverse)
        case index_mapping._SplitIndexMapping():
            return _window(channels, positions, mapping.offset, into=not mapping.reverse)
        case index_mapping._SliceIndexMapping() if mapping.reverse:
            return _pack(channels, positions * mapping.step + mapping.start)
        case index_mapping._SliceIndexMapping():
            start, step = mapping.start, mapping.step
            inside = (positions >= start) & (positions < mapping.end) & ((positions - start) % step == 0)
            return _pack(channels[inside], (positions[inside] - start) // step)
    raise NotFollowed(f"a step of kind {type(mapping).__name__} is not understood")


def _window(channels: np.ndarray, positions: np.ndarray, offset: Any, *, into: bool) -> np.ndarray:
    """Into the part ``offset`` of a whole, or out of it."""
    start, end = offset[0], offset[1]
    if not into:
        return _pack(channels, positions + start)
    inside = (positions >= start) & (positions < end)
    return _pack(channels[inside], positions[inside] - start)


def _pack(channels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    packed: np.ndarray = (channels.astype(np.int64) << _SHIFT) | positions.astype(np.int64)
    return packed


def _unpack(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pairs >> _SHIFT, pairs & (2**_SHIFT - 1)
