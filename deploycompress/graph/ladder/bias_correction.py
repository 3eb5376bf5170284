"""Biases that make up for what rounding the weights adds to a layer's output on average.

E[y_q - y] = (W_q - W) E[x], which is taken from the bias (Nagel et al. 2019, section 4.2, with the mean of the inputs
from calibration data). A convolution's border is counted as if the input went on there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from deploycompress.graph.execution import Feed
from deploycompress.graph.ladder.layers import Graph, Layer, along, layers
from deploycompress.graph.ladder.statistics import channel_statistics
from deploycompress.writing import saving

LEVELS = {False: 127, True: 63}  # of a symmetric weight, by whether its range is reduced


def correct_biases(
    source: Path,
    destination: Path,
    feeds: Iterable[Feed],
    reduce_range: bool = False,
    in_float: Collection[str] = (),
) -> int:
    """Write ``source``, in FP32, with biases for its weights in INT8 to ``destination``; how many layers have one.

    ``in_float``: layers by name that stay in FP32, and as they are.
    """
    import onnx

    model = onnx.load(source)
    graph = Graph(model.graph)
    found = [
        layer
        for layer in layers(graph)
        if layer.bias > 0 and _has_own_bias(graph, layer) and layer.node.name not in in_float
    ]
    axes = {layer.reads: layer.channels for layer in found}
    seen = channel_statistics(source, axes, feeds) if axes else {}
    for layer in found:
        weight = graph.array(layer.weight).astype(np.float64)
        shift = _shift(weight, layer, seen[layer.reads].mean, LEVELS[reduce_range])
        name = layer.node.input[layer.bias] if len(layer.node.input) > layer.bias else ""
        bias = graph.array(name) if name else np.zeros_like(shift)
        graph.replace(layer.node, layer.bias, bias - shift)
    with saving(destination):
        onnx.save(model, destination)
    return len(found)


def _has_own_bias(graph: Graph, layer: Layer) -> bool:
    """Or none at all; one that is computed, or not a vector, is left."""
    name = layer.node.input[layer.bias] if len(layer.node.input) > layer.bias else ""
    return not name or graph.is_vector(name)


def _shift(weight: np.ndarray, layer: Layer, mean: np.ndarray, levels: int) -> np.ndarray:
    """[outputs]: what rounding adds on average, each output channel with a scale of its own."""
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.outputs)
    scale = np.abs(weight).max(axis=others, keepdims=True) / levels
    scale[scale == 0] = 1.0
    added = np.round(weight / scale) * scale - weight
    if layer.inputs == layer.outputs:  # depthwise: each channel by its own mean
        total: np.ndarray = added.sum(axis=others) * mean
        return total
    total = (added * along(mean, layer.inputs, weight.ndim)).sum(axis=others)
    return total
