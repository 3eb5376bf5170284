"""Static INT8, and the data it is calibrated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import shape_inference

from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph import quantization
from deploycompress.graph.execution import inspect_onnx, run, run_onnx
from deploycompress.graph.quantization import quantize_dynamic_onnx, quantize_onnx
from deploycompress.graph.schemes import SCHEMES
from deploycompress.model.parity import compare
from deploycompress.runtimes.onnxruntime import OnnxRuntime


def as_written(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """What the file says, in float32 between its roundings: INT8 products saturate on a processor without VNNI."""
    return run(OnnxRuntime(), path, feeds, {"graph_level": "off"})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stays_close_and_uses_the_types_of_its_scheme(
    exported: Path, feed, tmp_path: Path, scheme: str
) -> None:
    path = tmp_path / "model.onnx"
    made = quantize_onnx(exported, path, [feed(8, seed) for seed in range(4)], scheme=scheme)
    assert (made.scheme, made.samples) == (scheme, 32)
    ops = inspect_onnx(path)["ops"]
    assert ops["QuantizeLinear"] >= 3 and ops["DequantizeLinear"] > ops["QuantizeLinear"]
    for batch in (1, 9):
        wanted, found = (as_written(file, [feed(batch, 9)])[0] for file in (exported, path))
        assert compare(wanted, found).cosine > 0.99
    zeros = [i for i in onnx.load(path).graph.initializer if i.name == "image_zero_point"]
    assert [z.data_type for z in zeros] == [
        onnx.TensorProto.INT8 if SCHEMES[scheme].activation == "QInt8" else onnx.TensorProto.UINT8
    ]
    weights = [i for i in onnx.load(path).graph.initializer if i.name.endswith("weight_quantized")]
    largest = max(int(np.abs(onnx.numpy_helper.to_array(w).astype(int)).max()) for w in weights)
    assert largest <= 64 if SCHEMES[scheme].reduce_range else largest > 100


def test_nothing_is_rounded_between_a_layer_and_its_activation(exported: Path, feed, tmp_path: Path) -> None:
    """Where zero is in the middle of the range the activation stays; TensorRT fuses it where nothing is between."""
    quantize_onnx(exported, tmp_path / "model.onnx", [feed(8)], scheme="s8s8_symmetric")
    graph = onnx.load(tmp_path / "model.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    activations = [node for node in graph.node if node.op_type == "Relu"]
    assert activations and {makers[node.input[0]].op_type for node in activations} == {"Conv"}
    used = {name for node in graph.node for name in node.input}
    assert all(tensor.name in used for tensor in graph.initializer)


def test_is_the_same_every_time(exported: Path, feed, tmp_path: Path) -> None:
    made = [
        quantize_onnx(exported, tmp_path / name, [feed(8)], scheme="u8s8").path.read_bytes()
        for name in ("1", "2")
    ]
    assert made[0] == made[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((4, 1, 12, 12), np.float32), "has the shape [4, 1, 12, 12], expected ['batch', 3, 12, 12]"),
        (np.ones((4, 3, 12), np.float32), "has the shape [4, 3, 12]"),
        (np.full((4, 3, 12, 12), np.nan, np.float32), "holds NaN or infinity"),
        (np.ones((4, 3, 12, 12), np.float64), "is float64, expected float32"),
    ],
)
def test_calibration_data_that_do_not_fit(
    exported: Path, tmp_path: Path, array: np.ndarray, reason: str
) -> None:
    with pytest.raises(ConfigError, match="calibration data of input 'image' ") as caught:
        quantize_onnx(exported, tmp_path / "model.onnx", [{"image": array}], scheme="u8s8")
    assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_calibration_data(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no calibration data"):
        quantize_onnx(exported, tmp_path / "model.onnx", [], scheme="u8s8")
    with pytest.raises(ConfigError, match=r"calibration data has no input 'image', only \['x'\]"):
        quantize_onnx(exported, tmp_path / "model.onnx", [{"x": np.ones(3)}], scheme="u8s8")


def test_what_shape_inference_leaves_behind_is_not_in_the_users_folder(tmp_path: Path, monkeypatch) -> None:
    """A map resized and joined to one of a dynamic batch: ONNX Runtime gives up, and saves what it has."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[batch, 4, 8, 8] image) => (float[batch, 8, 8, 8] joined)
        <float[4, 4, 1, 1] weight, float[4] scales = {1, 1, 2, 2}> {
            made = Conv (image, weight)
            half = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (made)
            whole = Resize <mode = "nearest"> (half, , scales)
            joined = Concat <axis = 1> (whole, made)
        }
    """)
    weight = np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales"),
        ]
    )
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    feed = {"image": np.random.default_rng(1).normal(size=(4, 4, 8, 8)).astype(np.float32)}
    found = quantize_onnx(Path("../net.onnx"), Path("int8.onnx"), [feed])
    assert [note.kind for note in found.notes] == ["fell_back"]
    assert [path.name for path in Path().iterdir()] == ["int8.onnx"]


def test_a_file_that_cannot_be_quantized(tmp_path: Path, feed) -> None:
    (tmp_path / "source.onnx").write_bytes(b"rubbish")
    with pytest.raises((ConfigError, StageFailed), match=r"source.onnx"):
        quantize_onnx(tmp_path / "source.onnx", tmp_path / "model.onnx", [feed(1)], scheme="u8s8")


def test_a_mask_does_not_swallow_the_scores_that_it_is_added_to(tmp_path):
    """Softmax over x W plus the lowest float where a token may not look, then the mean of tokens that it weighs."""
    lowest = np.finfo(np.float32).min
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(8, 8)), "v": rng.normal(size=(8, 4)), "zero": 0.0, "lowest": lowest}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], "scores"),
        helper.make_node("Where", ["allowed", "zero", "lowest"], ["mask"], "mask"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "add"),
        helper.make_node("Softmax", ["masked"], ["shares"], "softmax"),
        helper.make_node("MatMul", ["shares", "v"], ["y"], "values"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8]),
            helper.make_tensor_value_info("allowed", TensorProto.BOOL, ["batch", 1, 8]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    source = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), source)
    feed = {"x": rng.normal(size=(64, 3, 8)).astype(np.float32), "allowed": rng.random((64, 1, 8)) < 0.7}
    quantize_onnx(source, tmp_path / "int8.onnx", [feed], scheme="u8s8")
    (before,), (after,) = (as_written(path, [feed]) for path in (source, tmp_path / "int8.onnx"))
    assert compare(before, after).cosine > 0.99
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / "int8.onnx").graph.node)


def test_a_bias_that_layers_share_gets_no_other_tensors_name(tmp_path):
    """ONNX Runtime names its copy of ``bias_1`` for the second convolution ``bias_10``, as the reshape's output is."""
    rng = np.random.default_rng(0)
    tensors = {
        "first": rng.normal(size=(4, 3, 1, 1)).astype(np.float32),
        "second": rng.normal(size=(4, 4, 1, 1)).astype(np.float32),
        "bias_1": rng.normal(size=4).astype(np.float32),
        "shape": np.array([0, 4, 2, 8], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first", "bias_1"], ["made"], "a"),
        helper.make_node("Reshape", ["made", "shape"], ["bias_10"], "b"),
        helper.make_node("Conv", ["bias_10", "second", "bias_1"], ["y"], "c"),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 2, 8])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    source, feed = tmp_path / "source.onnx", {"x": rng.normal(size=(8, 3, 4, 4)).astype(np.float32)}
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), source)
    made = quantize_onnx(source, tmp_path / "model.onnx", [feed], scheme="u8s8")
    wanted, found = (as_written(file, [feed])[0] for file in (source, made.path))
    assert compare(wanted, found).cosine > 0.99


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_file_too_large_for_protocol_buffers_goes_into_one_where_its_quarter_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dynamic: bool
) -> None:
    """The limit stands for 2 GB, with which all of this was done once by hand."""
    weights = np.random.default_rng(0).standard_normal((2, 300, 300)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"], name="one"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
        helper.make_node("MatMul", ["positive", "second"], ["y"], name="two"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 300]) for name in ("x", "y")]
    given = [
        numpy_helper.from_array(array, name) for array, name in zip(weights, ("first", "second"), strict=True)
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], given)
    source = tmp_path / "large" / "model.onnx"
    source.parent.mkdir()
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(made, source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.setattr(quantization, "LARGEST_FILE", 400_000)  # of 720,000 bytes in FP32
    asked: list[bool] = []

    def watched(*given: Any, **named: Any) -> None:
        asked.append(named.get("save_as_external_data", False))
        prepare(*given, **named)

    prepare = shape_inference.quant_pre_process
    monkeypatch.setattr(shape_inference, "quant_pre_process", watched)
    path = tmp_path / "small" / "model.onnx"
    path.parent.mkdir()
    feeds = [{"x": np.random.default_rng(1).standard_normal((8, 300)).astype(np.float32)}]
    if dynamic:
        quantize_dynamic_onnx(source, path)
    else:
        quantize_onnx(source, path, feeds, scheme="s8s8")
    assert asked == [True]
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"] and path.stat().st_size < 250_000
    assert compare(run_onnx(source, feeds)[0], run_onnx(path, feeds)[0]).cosine > 0.99
    monkeypatch.setattr(quantization, "LARGEST_FILE", 100_000)
    with pytest.raises(StageFailed, match=r"model\.onnx has more than 2 GB in INT8 too"):
        quantize_onnx(source, path, feeds, scheme="s8s8")


def test_what_is_before_an_activation_may_be_an_output_too(tmp_path: Path) -> None:
    """Logits beside their sigmoid: the nodes that make the output stay."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"], name="layer"),
        helper.make_node("Sigmoid", ["logits"], ["shares"], name="activation"),
    ]
    x, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        for name in ("x", "logits", "shares")
    )
    graph = helper.make_graph(nodes, "g", [x], outputs, [weight])
    source = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), source)
    feeds = [{"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}]
    quantize_onnx(source, tmp_path / "made.onnx", feeds, scheme="s8s8_symmetric")
    wanted, found = run_onnx(source, feeds)[0], run_onnx(tmp_path / "made.onnx", feeds)[0]
    assert set(found) == {"logits", "shares"} and compare(wanted, found).cosine > 0.999
