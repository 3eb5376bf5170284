"""Equal ranges of the channels that one scale has to cover, by moving a factor from one layer into the next.

What passes from a layer to the next is divided by a factor for each channel, and the next layer's weight multiplied by
it: the file computes the same. Between convolutions this is cross-layer equalisation (Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction", section 4.1), behind a normalisation SmoothQuant (Xiao et
al. 2023, equation 4): s_j = max|x_j|^a / max|w_j|^(1 - a), with a = 0.5. Weights have a scale for each output channel,
so that only the inputs' side is to be balanced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deploycompress.graph.execution import Feed
from deploycompress.graph.ladder.layers import Graph, Layer, along, layers
from deploycompress.graph.ladder.statistics import channel_statistics

ALPHA = 0.5
# f(s x) = s f(x) for s > 0, channel by channel.
HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")
NORMALIZATIONS = ("LayerNormalization", "GroupNormalization", "RMSNormalization")


def equalize(source: Path, destination: Path, feeds: Iterable[Feed]) -> int:
    """Write ``source`` with equalised channels to ``destination``; how many tensors were."""
    import onnx

    model = onnx.load(source)
    graph = Graph(model.graph)
    found = _chains(graph)
    axes = {reads: readers[0].channels for reads, readers in found.items()}
    seen = channel_statistics(source, axes, feeds) if axes else {}
    for reads, readers in found.items():
        _move(graph, _producer(graph, reads), readers, seen[reads].largest)
    onnx.save(model, destination)
    return len(found)


def _chains(graph: Graph) -> dict[str, Sequence[Layer]]:
    """Tensor -> the layers that read it, where nothing else does and a factor can be moved there."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers(graph):
        readers.setdefault(layer.reads, []).append(layer)
    return {
        name: found
        for name, found in readers.items()
        if len(found) == len(graph.readers[name])
        and name not in graph.outputs
        and len({layer.channels for layer in found}) == 1
        and _producer(graph, name) is not None
    }


def _producer(graph: Graph, name: str) -> object | None:
    """What the channels of ``name`` can be scaled in: a layer or a normalisation, behind operators that let it through."""
    made_by = {layer.node.output[0]: layer for layer in layers(graph)}
    while True:
        node = graph.makers.get(name)
        if node is None:
            return None
        if node.op_type in NORMALIZATIONS and node.input[1] in graph.initializers:
            biased = len(node.input) > 2 and node.input[2]
            return node if not biased or node.input[2] in graph.initializers else None
        if name in made_by:
            layer = made_by[name]
            given = layer.node.input[layer.bias] if 0 < layer.bias < len(layer.node.input) else ""
            return layer if not given or given in graph.initializers else None
        if node.op_type not in HOMOGENEOUS or len(node.output) > 1:
            return None
        name = node.input[0]
        if len(graph.readers[name]) > 1 or name in graph.outputs:
            return None


def _move(graph: Graph, producer: object, readers: Sequence[Layer], largest: np.ndarray) -> None:
    weights = [graph.array(layer.weight) for layer in readers]
    spread = np.max([_largest(w, layer.inputs) for w, layer in zip(weights, readers, strict=True)], axis=0)
    factor = np.ones_like(largest)
    usable = (largest > 0) & (spread > 0)
    factor[usable] = largest[usable] ** ALPHA / spread[usable] ** (1 - ALPHA)
    if isinstance(producer, Layer):
        weight = graph.array(producer.weight)
        graph.replace(producer.node, 1, weight / along(factor, producer.outputs, weight.ndim))
        if 0 < producer.bias < len(producer.node.input) and producer.node.input[producer.bias]:
            bias = graph.array(producer.node.input[producer.bias])
            graph.replace(producer.node, producer.bias, bias / factor)
    else:
        node = producer
        for place in range(1, len(node.input)):  # type: ignore[attr-defined]
            if node.input[place]:  # type: ignore[attr-defined]
                graph.replace(node, place, graph.array(node.input[place]) / factor)  # type: ignore[arg-type, attr-defined]
    for weight, layer in zip(weights, readers, strict=True):
        graph.replace(layer.node, 1, weight * along(factor, layer.inputs, weight.ndim))


def _largest(weight: np.ndarray, axis: int) -> np.ndarray:
    """Of each input channel."""
    found: np.ndarray = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(1)
    return found
