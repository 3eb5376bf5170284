"""Files in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.execution import run_onnx
from deploycompress.graph.half import to_half
from deploycompress.model.parity import compare

FEED = {"image": np.random.default_rng(0).normal(size=(4, 3, 12, 12)).astype(np.float32)}


def test_fp16_is_half_the_size_and_nearly_the_same(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    to_half(exported, path, "fp16")
    parity = compare(run_onnx(exported, [FEED])[0], run_onnx(path, [FEED])[0])
    assert 0 < parity.relative < 5e-3 and parity.cosine > 0.9999
    types = {t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) > 1}
    assert TensorProto.FLOAT16 in types and TensorProto.FLOAT not in types


def test_bf16_keeps_the_range_that_fp16_has_not(tmp_path: Path) -> None:
    weight = np.array([[1e6, 1.0 + 2**-8], [1e-6, -3.0]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    source, path = tmp_path / "source.onnx", tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), source)
    to_half(source, path, "bf16")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (kept,) = (t for t in model.graph.initializer if t.name == "w")
    assert kept.data_type == TensorProto.BFLOAT16
    values = numpy_helper.to_array(kept).astype(np.float32)
    np.testing.assert_allclose(values, weight, rtol=2**-8)
    assert values[0, 1] == 1.0  # half way between two of them: to the even one
    ends = [i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)]
    assert ends == [TensorProto.FLOAT, TensorProto.FLOAT]


def test_what_sums_many_values_stays_in_fp32(tmp_path: Path) -> None:
    """The mean of squares of values around 1000 is above what FP16 holds."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "thousand"], ["h"]),
            helper.make_node("LayerNormalization", ["h", "scale"], ["y"], axis=-1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [
            numpy_helper.from_array(np.float32(1000), "thousand"),
            numpy_helper.from_array(np.ones(64, np.float32), "scale"),
        ],
    )
    source, path = tmp_path / "source.onnx", tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), source)
    to_half(source, path, "fp16")
    feed = {"x": np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)}
    assert compare(run_onnx(source, [feed])[0], run_onnx(path, [feed])[0]).relative < 5e-3


def test_what_cannot_be_converted_says_so(exported: Path, tmp_path: Path, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("Loop")

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", fails)
    with pytest.raises(StageFailed, match=r"model.onnx cannot be converted to fp16: KeyError: 'Loop'"):
        to_half(exported, tmp_path / "half.onnx", "fp16")


def test_bf16_wants_an_opset_that_has_it(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"model.onnx has opset 18, .* there from 22 on; export with opset: 22"
    ):
        to_half(exported, tmp_path / "half.onnx", "bf16")
