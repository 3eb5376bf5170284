"""Operators as ONNX Runtime's own profiler names them, traced back to the layers of a small residual network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.artifact import Artifact
from deploycompress.graph.layer_names import with_layers
from deploycompress.runtimes.onnxruntime import OnnxRuntime
from deploycompress.runtimes.openvino import OpenVino


def residual(path: Path, channels: int = 16) -> Path:
    """stem, then a block whose addition joins its second convolution with its shortcut, then a linear layer."""
    random = np.random.default_rng(0)
    image = np.zeros((1, channels, 8, 8), np.float32)

    def convolution(name: str, given: str, size: int) -> list[Any]:
        kernel = random.normal(size=(channels, channels, size, size)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"{name}.weight"))
        weights.append(numpy_helper.from_array(np.zeros(channels, np.float32), f"{name}.bias"))
        pads = [size // 2] * 4
        inputs = [given, f"{name}.weight", f"{name}.bias"]
        return [helper.make_node("Conv", inputs, [f"{name}_out"], f"node_{name}", pads=pads)]

    weights: list[Any] = [
        numpy_helper.from_array(random.normal(size=(channels * 64, 10)).astype(np.float32), "head.weight")
    ]
    nodes = [
        *convolution("stem", "image", 3),
        helper.make_node("Relu", ["stem_out"], ["relu"], "node_relu"),
        *convolution("block.conv1", "relu", 3),
        helper.make_node("Relu", ["block.conv1_out"], ["relu_1"], "node_relu_1"),
        *convolution("block.conv2", "relu_1", 3),
        *convolution("block.shortcut", "relu", 1),
        helper.make_node("Add", ["block.conv2_out", "block.shortcut_out"], ["add"], "node_add"),
        helper.make_node("Relu", ["add"], ["relu_2"], "node_relu_2"),
        helper.make_node("Flatten", ["relu_2"], ["flat"], "node_flatten"),
        helper.make_node("MatMul", ["flat", "head.weight"], ["logits"], "node_head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, list(image.shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def layers_of(path: Path, runtime: Any = None) -> dict[str, list[str]]:
    """Layer -> the operators that ran for it, as the runtime has them after its fusions; "" for those of none."""
    feed = {"image": np.random.default_rng(1).normal(size=(1, 16, 8, 8)).astype(np.float32)}
    profiled = (runtime or OnnxRuntime()).profile(path, {"threads": 1}, feed, 2)
    rows = [{"node": node, "op": of["op"]} for node, of in profiled.items()]
    found: dict[str, list[str]] = {}
    for row in with_layers(rows, Artifact.of("x", "onnx", path), path):
        found.setdefault(row["layer"], []).append(row["op"])
    return found


LAYERS = {"stem", "block.conv1", "block.conv2", "block.shortcut", "head"}


def test_every_layer_is_found_once_behind_fused_operators(tmp_path: Path) -> None:
    found = layers_of(residual(tmp_path / "model.onnx"))
    assert set(found) - {""} == LAYERS
    assert all(len(operators) == 1 for layer, operators in found.items() if layer)
    assert not [op for op in found.get("", ()) if "Conv" in op or "Gemm" in op or "MatMul" in op]


def test_layers_of_a_quantized_file_have_the_same_names(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            random = np.random.default_rng(2)
            self.left = [{"image": random.normal(size=(1, 16, 8, 8)).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    plain, int8 = residual(tmp_path / "model.onnx"), tmp_path / "int8.onnx"
    quantize_static(plain, int8, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    found = layers_of(int8)
    assert set(found) - {""} == LAYERS
    assert {op for layer, ops in found.items() if layer for op in ops} <= {
        "QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "MatMul", "Conv",
    }  # fmt: skip
    assert "QLinearConv" in found["block.conv2"]


def test_openvino_keeps_the_names_of_the_nodes(tmp_path: Path) -> None:
    runtime = OpenVino()
    if runtime.missing() is not None:
        pytest.skip("openvino is not installed")
    found = layers_of(residual(tmp_path / "model.onnx"), runtime)
    assert set(found) - {""} == LAYERS


def test_what_is_no_layer_and_no_onnx_file_has_no_name(tmp_path: Path) -> None:
    path = residual(tmp_path / "model.onnx")
    rows = [{"node": "ReorderOutput", "op": "ReorderOutput"}, {"node": "nobody_nchwc", "op": "Conv"}]
    assert [row["layer"] for row in with_layers(rows, Artifact.of("x", "onnx", path), path)] == ["", ""]
    assert [row["layer"] for row in with_layers(rows, Artifact.of("x", "engine", path), None)] == ["", ""]
    own = with_layers(
        [{"node": "layer1.0.conv1", "op": "Conv2d"}], Artifact.of("x", "checkpoint", path), None
    )
    assert own[0]["layer"] == "layer1.0.conv1"


def test_of_the_branches_that_a_fused_addition_joins_it_is_the_one_that_is_left(tmp_path: Path) -> None:
    path = residual(tmp_path / "model.onnx")
    fused, alone = {"node": "relu_2_nchwc", "op": "Conv"}, {"node": "block.conv2_out_nchwc", "op": "Conv"}
    for rows in ([fused, alone], [alone, fused]):
        told = with_layers(rows, Artifact.of("x", "onnx", path), path)
        layers = {row["node"]: row["layer"] for row in told}
        assert layers == {"relu_2_nchwc": "block.shortcut", "block.conv2_out_nchwc": "block.conv2"}
