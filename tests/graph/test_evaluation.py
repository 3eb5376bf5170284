"""An artefact's metrics in its own runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploycompress.contracts import Batch
from deploycompress.data.tasks.classification import Classification
from deploycompress.data.tasks.regression import Regression
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.evaluation import evaluate_artifact
from deploycompress.runtimes.onnxruntime import OnnxRuntime

TARGETS = [0, 1, 2, 0, 1, 2, 0]
SHOWN = [0, 1, 2, 0, 1, 0, 2]  # the last two are wrong


def classifier(path: Path, batch: int | str, factor: float = 1, width: int = 3) -> Path:
    """Gives its input, [batch, width], as logits."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, width])],
        [numpy_helper.from_array(np.float32(factor), "factor")],
    )
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(document.SerializeToString())
    return path


def loader(size: int) -> list[Batch]:
    images = torch.nn.functional.one_hot(torch.tensor(SHOWN), 3).float()
    targets = torch.tensor(TARGETS)
    starts = range(0, len(TARGETS), size)
    return [
        Batch({"x": images[i : i + size]}, targets[i : i + size], len(targets[i : i + size])) for i in starts
    ]


@pytest.mark.parametrize(("declared", "fixed", "size"), [("batch", None, 4), (2, 2, 4), (3, 3, 7), (4, 4, 4)])
def test_every_sample_counts_once(tmp_path: Path, declared: int | str, fixed: int | None, size: int) -> None:
    path = classifier(tmp_path / "model.onnx", declared)
    found = evaluate_artifact(OnnxRuntime(), path, {}, loader(size), Classification(), fixed)
    assert found.metrics["accuracy"] == pytest.approx(5 / 7)
    assert found.scores == (1, 1, 1, 1, 1, 0, 0)
    assert found.per_class == {"0": pytest.approx(2 / 3), "1": 1.0, "2": 0.5}
    assert found.samples == 7


def test_whole_numbers_that_a_regression_learns_are_no_classes(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", "batch", width=1)
    ages = [replace(batch, inputs={"x": batch.inputs["x"][:, :1]}) for batch in loader(4)]
    found = evaluate_artifact(OnnxRuntime(), path, {}, ages, Regression(), None)
    assert found.scores is not None and found.by_class == {}


def test_what_does_not_run_is_said(tmp_path: Path) -> None:
    wrong = classifier(tmp_path / "model.onnx", 3)
    with pytest.raises(StageFailed, match=r"model.onnx does not run: .*Got invalid dimensions"):
        evaluate_artifact(OnnxRuntime(), wrong, {}, loader(4), Classification(), None)
    infinite = classifier(tmp_path / "infinite.onnx", "batch", factor=float("inf"))
    with pytest.raises(StageFailed, match="output logits has NaN or infinite values on real data"):
        evaluate_artifact(OnnxRuntime(), infinite, {}, loader(4), Classification(), None)
    infinite.write_bytes(infinite.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="is refused"):
        evaluate_artifact(OnnxRuntime(), infinite, {}, loader(4), Classification(), None)
