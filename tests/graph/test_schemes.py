"""Which INT8 scheme a place wants, and that a file is read here for what it gives there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.devices.jobs import Candidate
from deploycompress.devices.local import Local
from deploycompress.errors import ConfigError
from deploycompress.graph import agreement, schemes
from deploycompress.graph.execution import run_onnx
from deploycompress.graph.quantization import quantize_dynamic_onnx
from deploycompress.graph.schemes import DYNAMIC, choose_scheme, reading
from deploycompress.measure.environment import machine

AVX2 = {"architecture": "x86_64", "flags": ["avx2"]}
WITH_VNNI = {"architecture": "x86_64", "flags": ["avx2", "avx_vnni"]}
ARM = {"architecture": "aarch64", "flags": ["asimddp"]}
AS_WRITTEN = {"graph_level": "off"}


@pytest.mark.parametrize(
    ("architecture", "flags", "scheme"),
    [
        ("x86_64", ["avx2", "avx512_vnni"], "u8s8"),
        ("AMD64", ["avx_vnni"], "u8s8"),
        ("x86_64", ["avx2", "avx512f"], "u8s8_reduced"),
        ("aarch64", ["asimddp"], "s8s8"),
        ("arm64", [], "s8s8"),
    ],
)
def test_auto_by_the_processor(architecture: str, flags: list[str], scheme: str) -> None:
    facts = {"architecture": architecture, "flags": flags}
    assert choose_scheme("auto", facts) == scheme
    assert choose_scheme("s8s8", facts) == "s8s8"
    reduced = "_reduced" if scheme.endswith("_reduced") else ""
    assert choose_scheme("dynamic", facts) == f"dynamic{reduced}"


def test_an_unknown_scheme() -> None:
    with pytest.raises(
        ConfigError, match="unknown quantization scheme 's4'; known: auto, u8s8, s8s8, u8s8_reduced"
    ):
        choose_scheme("s4", {})


@pytest.mark.parametrize(
    ("runtime", "provider"), [("tensorrt", "cpu"), ("trtexec", "cuda:1"), ("onnxruntime", "cuda")]
)
def test_auto_for_a_gpu_is_symmetric_whatever_processor_is_beside_it(runtime: str, provider: str) -> None:
    assert choose_scheme("auto", AVX2, runtime, provider) == "s8s8_symmetric"
    assert choose_scheme("u8s8", AVX2, runtime, provider) == "u8s8"


@pytest.mark.parametrize(
    ("here", "there", "runtime", "provider", "options"),
    [
        (AVX2, AVX2, "onnxruntime", "cpu", {}),  # it saturates there, too
        (AVX2, AVX2, "openvino", "cpu", {}),
        (AVX2, WITH_VNNI, "onnxruntime", "cpu", AS_WRITTEN),
        (AVX2, ARM, "onnxruntime", "cpu", AS_WRITTEN),
        (AVX2, AVX2, "tensorrt", "cpu", AS_WRITTEN),
        (AVX2, AVX2, "onnxruntime", "cuda", AS_WRITTEN),
        (WITH_VNNI, ARM, "onnxruntime", "cpu", {}),
        (ARM, AVX2, "onnxruntime", "cpu", {}),
    ],
)
def test_a_file_is_read_as_it_is_written_where_only_this_processor_saturates(
    monkeypatch, here: Mapping, there: Mapping, runtime: str, provider: str, options: Mapping
) -> None:
    monkeypatch.setattr(schemes, "machine", lambda: here)
    assert reading(there, runtime, provider) == options


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """y = 64 * 127 for x of 255: each pair of products is above what 16 bits hold."""
    constants = {
        "one": np.float32(1.0),
        "zero": np.uint8(0),
        "weight": np.full((64, 8), 127, np.int8),
        "weight_scale": np.float32(1.0 / 255),
        "weight_zero": np.int8(0),
        "out_scale": np.float32(127 * 64 / 250),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"]),
        helper.make_node("MatMul", ["d", "w"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "out_scale", "zero"], ["n"]),
        helper.make_node("DequantizeLinear", ["n", "out_scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "full.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "full.onnx"


def test_what_is_read_for_a_board_does_not_saturate(full: Path) -> None:
    """On this processor, whichever it is; one without VNNI gives half of it with its own kernels."""
    (found,) = run_onnx(full, [{"x": np.full((2, 64), 255, np.float32)}], reading(ARM, "onnxruntime", "cpu"))
    np.testing.assert_allclose(found["y"], 64 * 127, rtol=0.01)


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_weights_of_seven_bits_do_not_saturate_as_they_come_either(tmp_path: Path, scheme: str) -> None:
    """Inputs of the highest level beside weights of theirs: half of it is lost where products are added in 16 bits."""
    weight = numpy_helper.from_array(np.ones((64, 8), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    quantize_dynamic_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", scheme)
    (found,) = run_onnx(tmp_path / "int8.onnx", [{"x": np.ones((2, 64), np.float32)}])
    right = bool(np.allclose(found["y"], 64, rtol=0.02))
    assert right == (scheme == "dynamic_reduced" or not schemes.saturates(machine()))


class Board(Local):
    """This machine, which says that it is another one."""

    name = "board"

    def facts(self) -> Mapping[str, Any]:
        return {**super().facts(), **ARM, "name": self.name}


def test_a_board_is_held_against_what_the_file_says(full: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # with a lock of its own
    monkeypatch.setattr(schemes, "machine", lambda: AVX2)
    run: list[Mapping[str, Any]] = []
    answers = agreement.answers

    def noted(device, candidate, feeds, **more):
        run.append(candidate.options)
        return answers(device, candidate, feeds, **more)

    monkeypatch.setattr(agreement, "answers", noted)
    feed = {"x": np.ones((1, 64), np.float32)}  # so few that nothing saturates
    options = {"spinning": False}
    candidate = Candidate("it", full, "onnxruntime", precision="int8", options=options)
    assert agreement.check_on(Board(), [candidate, replace(candidate, precision="fp32")], feed) == []
    assert run == [{**options, **AS_WRITTEN}, options, options, options]  # here and there, for each
