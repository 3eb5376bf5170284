"""Zeros in the weights of a file, counted and filled."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.graph.execution import inspect_onnx, run_onnx
from deploycompress.graph.quantization import quantize_onnx
from deploycompress.graph.zeros import fill_zeros, share_of_zeros


@pytest.fixture
def sparse(tmp_path):
    """A linear layer of which three of four weights are zero, and a bias of zeros, which counts for nothing."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 32)).astype(np.float32)
    weight.flat[rng.permutation(512)[:384]] = 0.0
    tensors = {"weight": weight, "bias": np.zeros(32, np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], "layer")],
        "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    path = tmp_path / "sparse.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path, weight


def test_filled_it_is_the_same_file_with_no_zero_in_it(sparse, tmp_path):
    path, weight = sparse
    assert share_of_zeros(path) == 0.75
    fill_zeros(path, tmp_path / "filled.onnx")
    assert share_of_zeros(tmp_path / "filled.onnx") == 0
    filled = numpy_helper.to_array(onnx.load(tmp_path / "filled.onnx").graph.initializer[0])
    assert (
        np.array_equal(filled[weight != 0], weight[weight != 0])
        and np.abs(filled).max() == np.abs(weight).max()
    )
    assert inspect_onnx(tmp_path / "filled.onnx")["ops"] == inspect_onnx(path)["ops"]


def test_in_int8_too(sparse, tmp_path):
    path, _ = sparse
    feed = {"x": np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)}
    quantize_onnx(path, tmp_path / "int8.onnx", [feed])
    assert share_of_zeros(tmp_path / "int8.onnx") >= 0.75
    fill_zeros(tmp_path / "int8.onnx", tmp_path / "filled.onnx")
    assert share_of_zeros(tmp_path / "filled.onnx") == 0
    assert np.isfinite(run_onnx(tmp_path / "filled.onnx", [feed])[0]["y"]).all()
