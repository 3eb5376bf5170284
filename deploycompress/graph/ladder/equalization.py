"""Equal ranges of the channels that one scale has to cover, by moving a factor from one layer into the next.

What passes from a layer to the next is divided by a factor for each channel, and the next layer's weight multiplied by
it: the file computes the same. Between convolutions this is cross-layer equalisation (Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction", section 4.1), behind a normalisation SmoothQuant (Xiao et
al. 2023, equation 4): s_j = max|x_j|^a / max|w_j|^(1 - a), with a = 0.5. Weights have a scale for each output channel,
so that only the inputs' side is to be balanced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploycompress.graph.execution import Feed
from deploycompress.graph.ladder.layers import Graph, Layer, along, layers
from deploycompress.graph.ladder.statistics import channel_statistics
from deploycompress.writing import saving

if TYPE_CHECKING:
    import onnx

ALPHA = 0.5
# f(s x) = s f(x) for s > 0, channel by channel.
HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")
NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")  # whose scale lies along the last axis


def equalize(source: Path, destination: Path, feeds: Iterable[Feed]) -> int:
    """Write ``source`` with equalised channels to ``destination``; how many tensors were."""
    import onnx

    model = onnx.load(source)
    graph = Graph(model.graph)
    found = _chains(graph)
    axes = {reads: producer.channels for reads, (producer, _) in found.items()}
    seen = channel_statistics(source, axes, feeds) if axes else {}
    for reads, (producer, readers) in found.items():
        _move(graph, producer, readers, seen[reads].largest)
    with saving(destination):
        onnx.save(model, destination)
    return len(found)


@dataclass(frozen=True)
class Producer:
    """What channels are scaled in: constants of one node, each with the axis along which its channels lie."""

    node: onnx.NodeProto
    places: Mapping[int, int]  # of its inputs -> axis
    channels: int  # axis of the channels in what it gives


def _chains(graph: Graph) -> dict[str, tuple[Producer, Sequence[Layer]]]:
    """Tensor -> what makes it and the layers that read it, where nothing else does and a factor can be moved there."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers(graph):
        readers.setdefault(layer.reads, []).append(layer)
    producers = {layer.node.output[0]: _of_layer(graph, layer) for layer in layers(graph)}
    found: dict[str, tuple[Producer, Sequence[Layer]]] = {}
    for name, reading in readers.items():
        producer = _producer(graph, name, producers)
        alone = len(reading) == len(graph.readers[name]) and name not in graph.outputs
        if producer is not None and alone and {layer.channels for layer in reading} == {producer.channels}:
            found[name] = (producer, reading)
    return found


def _producer(graph: Graph, name: str, producers: Mapping[str, Producer | None]) -> Producer | None:
    """Behind operators that let a factor through, as long as nothing else reads what lies between."""
    while True:
        node = graph.makers.get(name)
        if node is None:
            return None
        if name in producers:
            return producers[name]
        if node.op_type in NORMALIZATIONS:
            return _of_normalization(graph, node)
        if node.op_type not in HOMOGENEOUS or len(node.output) > 1:
            return None
        name = node.input[0]
        if len(graph.readers[name]) > 1 or name in graph.outputs:
            return None


def _of_layer(graph: Graph, layer: Layer) -> Producer | None:
    given = layer.node.input[layer.bias] if 0 < layer.bias < len(layer.node.input) else ""
    if given and not graph.is_vector(given):
        return None
    return Producer(layer.node, {1: layer.outputs, **({layer.bias: 0} if given else {})}, layer.channels)


def _of_normalization(graph: Graph, node: onnx.NodeProto) -> Producer | None:
    """With a scale, and a shift where there is one, for each channel of the last axis."""
    constants = [place for place in range(1, len(node.input)) if node.input[place]]
    if len(node.output) > 1 or not constants or not all(graph.is_vector(node.input[p]) for p in constants):
        return None
    return Producer(node, dict.fromkeys(constants, 0), -1)


def _move(graph: Graph, producer: Producer, readers: Sequence[Layer], largest: np.ndarray) -> None:
    weights = [graph.array(layer.weight) for layer in readers]
    spread = np.max([_largest(w, layer.inputs) for w, layer in zip(weights, readers, strict=True)], axis=0)
    factor = np.ones_like(largest)
    usable = (largest > 0) & (spread > 0)
    factor[usable] = largest[usable] ** ALPHA / spread[usable] ** (1 - ALPHA)
    for place, axis in producer.places.items():
        constant = graph.array(producer.node.input[place])
        graph.replace(producer.node, place, constant / along(factor, axis, constant.ndim))
    for weight, layer in zip(weights, readers, strict=True):
        graph.replace(layer.node, 1, weight * along(factor, layer.inputs, weight.ndim))


def _largest(weight: np.ndarray, axis: int) -> np.ndarray:
    """Of each input channel."""
    found: np.ndarray = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(1)
    return found
