"""The layers of an ONNX graph that have constant weights: where their channels lie, and how they are changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

FLOAT = 1  # TensorProto.DataType


class Graph:
    """Look-ups in one graph, whose initializers can be replaced."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {output: node for node in graph.node for output in node.output if output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {port.name for port in graph.output}

    def is_vector(self, name: str) -> bool:
        """Whether it is a constant of one dimension, in FP32."""
        tensor = self.initializers.get(name)
        return tensor is not None and len(tensor.dims) == 1 and tensor.data_type == FLOAT

    def array(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        found: np.ndarray = numpy_helper.to_array(self.initializers[name])
        return found

    def replace(self, node: onnx.NodeProto, place: int, array: np.ndarray) -> None:
        """Give ``node`` a constant of its own at input ``place``; others that read the old one keep it."""
        from onnx import numpy_helper

        while len(node.input) <= place:
            node.input.append("")
        name = node.input[place]
        if not name or len(self.readers.get(name, ())) > 1:
            base = f"{node.output[0]}/constant{place}"
            name = base + "".join("'" for _ in range(sum(key.startswith(base) for key in self.initializers)))
            node.input[place] = name
            self.readers[name] = [node]
        tensor = numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name)
        if name in self.initializers:
            self.initializers[name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
            self.initializers[name] = self.graph.initializer[-1]


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product with a constant weight; ``bias``: the place of its own, -1 where it has none."""

    node: onnx.NodeProto
    inputs: int  # axis of the weight along which its input channels lie; 0 of a depthwise convolution
    outputs: int
    bias: int
    channels: int  # axis of the channels in what it reads, counted from the end where that is -1

    @property
    def reads(self) -> str:
        return str(self.node.input[0])

    @property
    def weight(self) -> str:
        return str(self.node.input[1])


def layers(graph: Graph) -> Iterator[Layer]:
    """In the order of the graph; of grouped convolutions only depthwise ones."""
    for node in graph.graph.node:
        if len(node.input) < 2 or node.input[1] not in graph.initializers:
            continue
        if graph.initializers[node.input[1]].data_type != FLOAT:
            continue
        shape = list(graph.initializers[node.input[1]].dims)
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Conv":
            group = attributes["group"].i if "group" in attributes else 1
            if group == 1:
                yield Layer(node, inputs=1, outputs=0, bias=2, channels=1)
            elif group == shape[0] and shape[1] == 1:
                yield Layer(node, inputs=0, outputs=0, bias=2, channels=1)
        elif node.op_type == "Gemm" and _plain_gemm(attributes):
            transposed = "transB" in attributes and attributes["transB"].i
            yield Layer(
                node, inputs=1 if transposed else 0, outputs=0 if transposed else 1, bias=2, channels=-1
            )
        elif node.op_type == "MatMul" and len(shape) == 2:
            yield Layer(node, inputs=0, outputs=1, bias=-1, channels=-1)


def _plain_gemm(attributes: dict[str, onnx.AttributeProto]) -> bool:
    given = {name: attributes[name].f for name in ("alpha", "beta") if name in attributes}
    return all(value == 1.0 for value in given.values()) and not (
        "transA" in attributes and attributes["transA"].i
    )


def along(values: np.ndarray, axis: int, dimensions: int) -> np.ndarray:
    """A vector, to be multiplied with an array of that many ``dimensions`` along ``axis``."""
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)
