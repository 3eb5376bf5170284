"""Scales of activations that are known already, in the form in which ONNX Runtime's quantizer takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RENAMED = "_QuantizeLinear_Input"  # what the quantizer adds to the name of an output of the graph
KEEPS_VALUES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "MaxPool")

AVERAGES = ("AveragePool", "Resize")  # the quantizer gives what they make the scale of what they read


def scales_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Tensor -> its one scale and zero point, as ``TensorQuantOverrides`` wants them; of activations alone."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        if scale.size == 1:
            found[node.input[0].removesuffix(RENAMED)] = [
                {"scale": np.array(scale.reshape(())), "zero_point": np.array(zero.reshape(()))}
            ]
    return found


def scales_by_layer(
    path: Path, known: Mapping[str, Sequence[float]], activation: str
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The same of what layers read, and the nodes that have to stay in FP32 for it: ``known`` has, by module path, the scale and the zero point in 0..255.

    A layer is found by its weight, which exporters name after it. What only moves values has the scale of what it
    reads, so that the tensor before it is the one that is named. ``activation``: QUInt8 or QInt8, whose zero is 128
    lower. Layers that are not found are left out. An average has the quantizer's scale of what it is taken of; in FP32
    it is read with the layer's own.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    readers = {node.input[1]: node for node in graph.node if len(node.input) > 1}
    makers = {output: node for node in graph.node for output in node.output}

    def before(tensor: str) -> str:
        maker = makers.get(tensor)
        return before(maker.input[0]) if maker is not None and maker.op_type in KEEPS_VALUES else tensor

    dtype, lower = (np.uint8, 0) if activation == "QUInt8" else (np.int8, 128)
    found: dict[str, list[dict[str, Any]]] = {}
    averages = []
    for layer, (scale, zero) in known.items():
        reader = readers.get(f"{layer}.weight")
        if reader is None:
            continue
        tensor = reader.input[0]
        maker = makers.get(before(tensor))
        if maker is not None and maker.op_type in AVERAGES:
            averages.append(maker.name)
        else:
            tensor = before(tensor)
        zero_point = np.array(int(zero) - lower, dtype)
        found[tensor] = [{"scale": np.array(scale, np.float32), "zero_point": zero_point}]
    return found, averages
