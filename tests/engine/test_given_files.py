"""Files from elsewhere that the engine reads: run directories of others, and ONNX files that a pipeline names."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import TensorProto, helper

from deploycompress.engine.loading import load_pruned
from deploycompress.engine.rehearsal import artifacts_for
from deploycompress.errors import ConfigError, StageFailed

STEP: dict[str, Any] = {"id": "train", "directory": "01-train", "state": "done", "undone": ""}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "null", "[" * 100_000, '{"steps": null}', '{"steps": [1]}', '{"steps": [[]]}',
        *(json.dumps({"steps": [STEP | change]}) for change in (
            {"id": []}, {"directory": 3.5}, {"directory": {}}, {"state": []}, {"undone": None},
            {"directory": "../01-train"}, {"directory": "/etc"}, {"directory": ".."},
        )),
    ],
)  # fmt: skip
def test_a_record_of_a_run_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        load_pruned(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"artifacts": [[]]}', '{"artifacts": [{"files": 3}]}', "[" * 100_000]
)
def test_a_manifest_of_a_step_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / "run.json").write_text(json.dumps({"steps": [STEP]}))
    (tmp_path / "01-train").mkdir()
    (tmp_path / "01-train" / "manifest.json").write_text(text)
    with pytest.raises(StageFailed, match=r"manifest\.json cannot be read"):
        load_pruned(tmp_path)


def test_a_folder_with_too_long_a_name_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / "run.json").write_text(json.dumps({"steps": [STEP | {"directory": "é" * 300}]}))
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        load_pruned(tmp_path)


def test_an_onnx_file_that_a_pipeline_names_goes_through_the_safe_reader_first(tmp_path: Path) -> None:
    weight = TensorProto(
        name="w", dims=[4, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="/etc/passwd")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "given.onnx").write_bytes(model.SerializeToString())
    step: Any = SimpleNamespace(id="quantize", sources={"source": tmp_path / "given.onnx"})
    with pytest.raises(ConfigError, match="is not a relative file name"):
        artifacts_for(step, "source", {})
