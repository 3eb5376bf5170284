"""What a device computes is held against what we compute, and a wrong result is an error before it is a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.devices.jobs import Candidate
from deploycompress.devices.local import Local
from deploycompress.errors import StageFailed
from deploycompress.graph.agreement import check_on

FEED = {"x": np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32)}


class Crooked(Local):
    """This machine, whose answers come out ``factor`` times as large, with ``noise`` of their size."""

    name = "crooked"

    def __init__(self, factor: float = 1.0, noise: float = 0.0) -> None:
        super().__init__()
        self.factor, self.noise = factor, noise

    def collect(self, id: str, files: Mapping[str, Path]) -> None:
        super().collect(id, files)
        for place in files.values():
            right = np.load(place)
            wrong = np.random.default_rng(1).standard_normal(right.shape, dtype=np.float32)
            np.save(place, self.factor * right + self.noise * np.abs(right).max() * wrong)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that turns x round."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # with a lock of its own
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(-np.eye(64, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "model.onnx"


def check(path: Path, device: Local, precision: str = "fp32") -> None:
    assert check_on(device, [Candidate("it", path, "onnxruntime", precision=precision)], FEED) == []


def test_the_same_passes(path: Path) -> None:
    check(path, Crooked())
    check(path, Crooked(noise=1e-5))
    check(path, Crooked(noise=0.05), "int8")  # two processors round INT8 differently


@pytest.mark.parametrize(
    ("device", "precision", "told"),
    [
        (
            Crooked(noise=0.01),
            "fp32",
            r"relative difference 0\.0\d+, cosine 0\.99\d+, expected at most 0\.001",
        ),
        (Crooked(factor=1.5), "fp32", "relative difference 0.5, cosine 1.0000, expected at most"),
        (Crooked(factor=-1.0), "int8", r"cosine -1\.0000, expected a cosine of at least 0\.9"),
        (Crooked(factor=float("nan")), "fp32", "the candidate's output y has 256 NaN or infinite values"),
    ],
)
def test_another_result_is_an_error(path: Path, device: Local, precision: str, told: str) -> None:
    with pytest.raises(
        StageFailed, match=f"it on crooked does not give what it gives here: .*{told}.*not timed"
    ):
        check(path, device, precision)
