"""infer.py, run as whoever finds it in artifacts/ would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from deploycompress.report.example import example

TARGET = {"threads": 2, "batch_size": 3, "provider": "cpu"}


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder with y = x + x and n = length, of a name that has to be quoted."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["it's", "it's"], ["sum"]), helper.make_node("Identity", ["ids"], ["same"])],
        "g",
        [
            helper.make_tensor_value_info("it's", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("same", TensorProto.INT64, ["batch", "length"]),
        ],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return tmp_path


def entry(kind: str, file: str, **details: Any) -> dict[str, Any]:
    inputs = {
        "it's": {"shape": ["batch", 4], "dtype": "float32"},
        "ids": {"shape": ["batch", "length"], "dtype": "int64"},
    }
    return {"kind": kind, "file": file, "files": [[file, "0", 1]], "inputs": inputs, "details": details}


def ran(folder: Path, program: str | None) -> str:
    assert program is not None
    (folder / "infer.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "infer.py")], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_onnx_file_runs_with_numpy_and_onnx_runtime_alone(shipped: Path) -> None:
    program = example([entry("onnx", "model.onnx", threads=1)], TARGET)
    output = ran(shipped, program)
    assert "sum (3, 4)" in output and "same (3, 16)" in output
    assert "intra_op_num_threads = 1" in str(program) and "deploycompress" not in str(program)


@pytest.mark.parametrize("static", [False, True])
def test_an_openvino_folder_runs(shipped: Path, static: bool) -> None:
    import openvino

    model = openvino.convert_model(shipped / "model.onnx")
    openvino.save_model(model, shipped / "model.bf16.openvino" / "model.xml")
    options = {"computes_in": "bf16", **({"static_shapes": True} if static else {})}
    made = entry("openvino", "model.bf16.openvino", runtime="openvino", options=options)
    program = example([made, entry("onnx", "model.onnx")], TARGET)
    output = ran(shipped, program)
    assert "sum (3, 4)" in output and "same (3, 16)" in output and "'bf16'" in str(program)


def test_a_network_runs_with_the_code_that_it_is_made_of(tmp_path: Path) -> None:
    from deploycompress.config.schema import InputSpec, ModelConfig
    from deploycompress.model import checkpoint
    from deploycompress.model.source import SourceModel

    inputs = {"image": InputSpec(shape=("batch", 1, 28, 28))}
    build = "deploycompress.examples.cnn:build"
    model = SourceModel(ModelConfig(build=build, weights=None, inputs=inputs), 0)
    checkpoint.save(model.build(), tmp_path / "model.checkpoint", model)
    made = {
        **entry("checkpoint", "model.checkpoint", options={"computes_in": "bf16"}),
        "inputs": {name: spec.model_dump() for name, spec in inputs.items()},
        "network": {**model.recipe, "search_path": []},
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"artifacts": [made]}))
    program = example([made], TARGET)
    assert "output (3, 10)" in ran(tmp_path, program) and "'computes_in': 'bf16'" in str(program)


def test_what_onnx_runtime_optimised_is_not_optimised_again(shipped: Path) -> None:
    made = entry("engine", "model.onnx", runtime="onnxruntime", provider="cpu")
    program = example([made], TARGET)
    assert "sum (3, 4)" in ran(shipped, program) and "ORT_DISABLE_ALL" in str(program)


def test_an_engine_is_passed_over_and_nothing_is_nothing(shipped: Path) -> None:
    engine = entry("engine", "model.engine", runtime="tensorrt")
    assert "model.onnx" in str(example([engine, entry("onnx", "model.onnx")], TARGET))
    assert example([engine], TARGET) is None and example([], TARGET) is None


def test_a_name_cannot_end_the_text_it_stands_in(shipped: Path) -> None:
    name = 'model""" + str(1 % 0) + r"""\\.onnx'
    (shipped / name).write_bytes((shipped / "model.onnx").read_bytes())
    assert "sum (3, 4)" in ran(shipped, example([entry("onnx", name)], TARGET))
