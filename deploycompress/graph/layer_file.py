"""An ONNX file of one layer, or of a few in a row, at one fixed input shape: what a layer costs is measured on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from deploycompress.writing import saving

INPUT, OPSET, IR_VERSION = "x", 18, 9


def write_layers(layers: Sequence[nn.Module], shape: tuple[int, ...], path: Path) -> None:
    """Write linear layers and convolutions (padded with zeros), one after the other, to ``path``.

    ``shape``: of the input ``x``, float32. The nodes are those that the exporter writes: Gemm for [batch, in], MatMul
    and Add for more dimensions, Conv.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    tensors: dict[str, np.ndarray] = {}
    given = INPUT
    for number, layer in enumerate(layers):
        made = f"y{number}"
        nodes += _nodes(layer, number, given, made, len(shape), tensors)
        given = made
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    path.parent.mkdir(parents=True, exist_ok=True)
    with saving(path):
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


def _nodes(
    layer: nn.Module, number: int, given: str, made: str, ndim: int, tensors: dict[str, np.ndarray]
) -> Iterator[Any]:
    from onnx import helper

    assert isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    weight, bias = f"weight{number}", f"bias{number}"
    tensors[weight] = layer.weight.detach().float().cpu().numpy()
    if layer.bias is not None:
        tensors[bias] = layer.bias.detach().float().cpu().numpy()
    parameters = [name for name in (weight, bias) if name in tensors]
    if not isinstance(layer, nn.Linear):
        yield helper.make_node("Conv", [given, *parameters], [made], **_attributes(layer))
    elif ndim == 2:
        yield helper.make_node("Gemm", [given, *parameters], [made], transB=1)
    else:
        tensors[weight] = np.ascontiguousarray(tensors[weight].T)
        product = made if layer.bias is None else f"product{number}"
        yield helper.make_node("MatMul", [given, weight], [product])
        if layer.bias is not None:
            yield helper.make_node("Add", [product, bias], [made])


def _attributes(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    if isinstance(layer.padding, str):
        totals = [
            dilation * (kernel - 1) if layer.padding == "same" else 0
            for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
        ]
        pads = [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]
    else:
        pads = [*layer.padding, *layer.padding]
    return {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "pads": pads,
        "group": layer.groups,
    }
