"""ONNX Runtime behind the contract."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.contracts import Session
from deploycompress.runtimes.onnxruntime import OnnxRuntime


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    """y = x * 2 for x[batch, 3]."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        ).SerializeToString()
    )
    return path


def test_runs_what_is_bound_and_fetches_it(doubled: Path) -> None:
    assert OnnxRuntime().missing() is None
    with OnnxRuntime().open(doubled, {"threads": 2, "spinning": False, "graph_level": "extended"}) as session:
        assert isinstance(session, Session)
        assert session.inputs == {"x": ("tensor(float)", ("batch", 3))}
        for batch in (2, 5, 1):
            feed = np.random.default_rng(batch).random((batch, 3), dtype=np.float32)
            call = session.bind({"x": feed})
            call()
            np.testing.assert_array_equal(session.fetch()["y"], feed * 2)


def test_what_is_bound_need_not_be_kept(doubled: Path) -> None:
    """The binding refers to the array's memory, which must not be freed under it."""
    with OnnxRuntime().open(doubled, {}) as session:
        call = session.bind({"x": np.arange(6, dtype=np.float32).reshape(3, 2).T})  # not contiguous: copied
        np.random.default_rng(0).random(100_000)
        call()
        np.testing.assert_array_equal(session.fetch()["y"], [[0, 4, 8], [2, 6, 10]])


def test_an_absent_provider_is_an_error_and_not_the_cpu(doubled: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"has no CoreMLExecutionProvider here; it has .*CPUExecutionProvider"
    ):
        with OnnxRuntime().open(doubled, {"provider": "coreml"}):
            pass


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"does not load model\.onnx"):
        with OnnxRuntime().open(tmp_path / "model.onnx", {}):
            pass


def test_the_call_keeps_what_it_needs_alive(doubled: Path) -> None:
    """The session goes out of sight: a candidate's process holds nothing but the call."""
    context = OnnxRuntime().open(doubled, {})
    session = context.__enter__()
    call = session.bind({"x": np.ones((2, 3), np.float32)})
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is not None
    call()
    assert gone().fetch()["y"].shape[0] == 2
    del call, context


def test_a_profile_takes_of_the_feed_what_the_file_reads(doubled: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    feed = {"x": np.ones((2, 3), np.float32), "mask": np.ones((2, 3), np.int64)}
    found = OnnxRuntime().profile(doubled, {}, feed, 3)
    assert [(of["op"], of["provider"], of["role"], len(of["ns"])) for of in found.values()] == [
        ("Mul", "CPUExecutionProvider", "", 3)
    ]
    assert not list(tmp_path.glob("onnxruntime_profile*"))
