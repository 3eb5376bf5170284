"""One ONNX file that holds many operators side by side, each by itself, for a latency table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploycompress.graph.operators import Operator

OPSET = 18


def write_catalogue(points: Sequence[Operator], path: Path) -> dict[str, np.ndarray]:
    """Write ``points`` to one ONNX file; the feed it wants. What point i runs is named ``p<i>_...`` in it.

    In one file they take turns in every inference, so that what drifts on the machine meets all of them
    alike. As in a model, what an operator reads was written just before (by a LeakyRelu of its own: equal
    ones would be merged), and what it writes is read at once, here by a maximum, so that the memory is used
    again. Without both, small operators took 20 % longer than in ResNet-18. The weights are random.
    """
    from onnx import TensorProto, checker, helper, save

    generator = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []
    feed: dict[str, np.ndarray] = {}
    outputs = []

    def constant(name: str, shape: Sequence[int]) -> str:
        values = (0.1 * generator.standard_normal(tuple(shape))).astype(np.float32)
        weights.append(helper.make_tensor(name, TensorProto.FLOAT, shape, values.tobytes(), raw=True))
        return name

    for number, point in enumerate(points):
        given = "in_" + "x".join(map(str, point.input))
        if given not in feed:
            feed[given] = generator.standard_normal(point.input).astype(np.float32)
        made, fresh = f"p{number}_out", f"i{number}"
        nodes.append(helper.make_node("LeakyRelu", [given], [fresh], name=fresh, alpha=1e-5 * (number + 1)))
        nodes += _nodes(point, f"p{number}_", fresh, made, constant)
        reduced = f"r{number}"
        if point.kind == "matmul":
            nodes.append(helper.make_node("ReduceMax", [made], [reduced], name=reduced, keepdims=1))
        else:  # of the operators that reduce, this one reads the blocked layout of a convolution's output
            nodes.append(helper.make_node("GlobalMaxPool", [made], [reduced], name=reduced))
        outputs.append(helper.make_tensor_value_info(reduced, TensorProto.FLOAT, [None] * len(point.input)))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in feed.items()
    ]
    graph = helper.make_graph(nodes, "catalogue", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    checker.check_model(model)
    save(model, path)
    return feed


def _nodes(point: Operator, prefix: str, given: str, made: str, constant: Any) -> list[Any]:
    from onnx import helper

    if point.kind == "matmul":
        weight = constant(f"{prefix}weight", (point.c_in, point.c_out))
        product = f"{prefix}product" if point.bias else made
        nodes = [helper.make_node("MatMul", [given, weight], [product], name=f"{prefix}matmul")]
        if point.bias:
            bias = constant(f"{prefix}bias", (point.c_out,))
            nodes.append(helper.make_node("Add", [product, bias], [made], name=f"{prefix}add"))
        return nodes
    attributes: dict[str, Any] = {
        "kernel_shape": point.kernel,
        "strides": point.stride,
        "pads": (*point.padding, *point.padding),
        "dilations": point.dilation,
        "group": point.groups,
    }
    if point.kind == "conv_transpose":
        shape = (point.c_in, point.c_out // point.groups, *point.kernel)
        name = "ConvTranspose"
        attributes["output_padding"] = point.output_padding
    else:
        shape = (point.c_out, point.c_in // point.groups, *point.kernel)
        name = "Conv"
    names = [given, constant(f"{prefix}weight", shape)]
    if point.bias:
        names.append(constant(f"{prefix}bias", (point.c_out,)))
    return [helper.make_node(name, names, [made], name=f"{prefix}conv", **attributes)]
