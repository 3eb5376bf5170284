"""OpenVINO behind the contract."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.contracts import Session
from deploycompress.runtimes.openvino import OpenVino


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """y = x @ w, s = the sum of y, for x[batch, 64]."""
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
            helper.make_node("ReduceSum", ["y"], ["s"], name="sum", keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    np.save(tmp_path / "weight.npy", weight)
    return path


def test_runs_what_is_bound_at_any_batch_size_and_fetches_it_by_name(product: Path) -> None:
    assert OpenVino().missing() is None
    weight = np.load(product.with_name("weight.npy"))
    with OpenVino().open(product, {"threads": 2}) as session:
        assert isinstance(session, Session)
        assert session.inputs == {"x": ("f32", (-1, 64))}
        for batch in (2, 5, 1):
            feed = np.random.default_rng(batch).random((batch, 64), dtype=np.float32)
            call = session.bind({"x": feed, "not asked for": feed})
            call()
            found = session.fetch()
            np.testing.assert_allclose(found["y"], feed @ weight, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found["s"], (feed @ weight).sum(), rtol=1e-4, atol=1e-3)


def test_computes_in_the_precision_that_was_asked_for(product: Path) -> None:
    """Left to itself it takes bfloat16 where the processor has it; FP32 has to mean FP32."""
    weight = np.load(product.with_name("weight.npy"))
    feed = np.random.default_rng(1).random((4, 64), dtype=np.float32)
    errors = {}
    for precision in ("fp32", "bf16"):
        with OpenVino().open(product, {"computes_in": precision}) as session:
            session.bind({"x": feed})()
            errors[precision] = float(np.abs(session.fetch()["y"] - feed @ weight).max())
    assert errors["fp32"] < 1e-4
    if errors["bf16"] < 1e-4:
        pytest.skip("this processor does not multiply in bfloat16")
    assert errors["bf16"] < 0.5


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
from deploycompress.runtimes.openvino import OpenVino

for _ in range(2):  # the first is still there when the second begins, and gone when it ends
    with OpenVino().open(Path(sys.argv[1]), {}) as session:
        session.bind({"x": np.ones((2, 64), np.float32)})()
del session
gc.collect()
found = []
signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
os.kill(os.getpid(), signal.SIGTERM)
print(found)
"""


def test_a_signal_after_sessions_came_and_went(product: Path) -> None:
    """Each Core of OpenVINO's gives back the signal stack that it found, which may be gone by then."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(product)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"[{int(signal.SIGTERM)}]\n"), done.stderr


def test_the_profile_names_operators_kernels_and_precisions(product: Path) -> None:
    feed = {"x": np.ones((3, 64), np.float32)}
    found = OpenVino().profile(product, {}, feed, calls=5)
    products = [of for of in found.values() if of["op"] in ("FullyConnected", "MatMul")]
    assert len(products) == 1 and len(products[0]["ns"]) == 5
    assert products[0]["precision"] == "fp32" and products[0]["provider"]


def test_an_output_that_is_passed_through_unchanged_keeps_its_name(tmp_path: Path) -> None:
    """A file in BF16 ends with a cast, which goes where the processor computes in FP32 after all."""
    nodes = [
        helper.make_node("Relu", ["x"], ["before"]),
        helper.make_node("Cast", ["before"], ["y"], to=TensorProto.FLOAT),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:]), opset_imports=[helper.make_opsetid("", 18)]
    )
    (tmp_path / "cast.onnx").write_bytes(model.SerializeToString())
    with OpenVino().open(tmp_path / "cast.onnx", {}) as session:
        session.bind({"x": np.float32([[-1, 0, 1, 2]])})()
        (found,) = session.fetch().items()
    assert found[0] == "y" and found[1].tolist() == [[0, 0, 1, 2]]


def test_static_shapes_are_those_of_the_feed(product: Path) -> None:
    weight = np.load(product.with_name("weight.npy"))
    with OpenVino().open(product, {"static_shapes": True}) as session:
        for batch in (2, 2, 3):
            feed = np.random.default_rng(batch).random((batch, 64), dtype=np.float32)
            session.bind({"x": feed})()
            assert session.inputs == {"x": ("f32", (batch, 64))}
            np.testing.assert_allclose(session.fetch()["y"], feed @ weight, rtol=1e-5, atol=1e-5)


def test_nothing_is_reported_to_anybody() -> None:
    """OpenVINO would do that when it is imported, from a process that it forks beside what is measured."""
    code = "import sys, deploycompress.runtimes.openvino, openvino; print('openvino_telemetry.main' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr


def test_a_file_by_another_name_is_not_opened(product: Path, tmp_path: Path) -> None:
    """OpenVINO goes by what is in it, and only an .onnx has been through the safe reader."""
    disguised = tmp_path / "model.xml"
    disguised.write_bytes(product.read_bytes())
    with pytest.raises(
        RuntimeError, match=r"model\.xml is no OpenVINO model: it does not begin with <\?xml or <net"
    ):
        with OpenVino().open(disguised, {}):
            pass


def test_an_absent_device_and_a_broken_file_say_so(product: Path) -> None:
    with pytest.raises(RuntimeError, match=r"has no device NPU here; it has CPU"):
        with OpenVino().open(product, {"provider": "npu"}):
            pass
    product.write_bytes(b"no ONNX file")
    with pytest.raises(RuntimeError, match=r"OpenVINO does not load model.onnx: "):
        with OpenVino().open(product, {}):
            pass


def test_the_call_keeps_what_it_needs_alive(product: Path) -> None:
    """The session goes out of sight: a candidate's process holds nothing but the call."""
    context = OpenVino().open(product, {})
    session = context.__enter__()
    call = session.bind({"x": np.ones((2, 64), np.float32)})
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is not None
    call()
    assert gone().fetch()["y"].shape[0] == 2
    del call, context
