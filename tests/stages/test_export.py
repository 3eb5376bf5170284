"""The export stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from deploycompress.artifact import Artifact
from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.errors import EnvironmentMissing
from deploycompress.graph import export as graph_export
from deploycompress.graph.execution import inspect_onnx
from deploycompress.model import checkpoint
from deploycompress.model.source import SourceModel
from deploycompress.stages.export import Export
from deploycompress.stages.quantize import Quantize


def test_a_checkpoint_becomes_a_checked_file(run_context, checkpoint_of, tmp_path: Path) -> None:
    events: list = []
    context = run_context(events=events)
    stage, inputs = Export(Export.Config(opset=19)), {"source": (checkpoint_of(context),)}
    workdir = tmp_path / "work"
    workdir.mkdir()
    outcome = stage.run(inputs, workdir, context)
    (made,) = outcome.artifacts
    assert made.path == workdir / "model.onnx" and made.kind == "onnx"
    assert made.details == {
        "exporter": "dynamo",
        "opset": 19,
        "simplified": "onnxsim",
        "batchnorms_folded": 1,
    }
    assert inspect_onnx(made.path)["inputs"]["image"]["shape"] == ["batch", 1, 8, 8]
    parity = stage.ensures(inputs, outcome, context)
    assert set(parity) == {"export_max_abs", "export_relative", "simplify_relative"}
    assert max(parity.values()) < 1e-4
    assert [p.name for p in workdir.iterdir()] == ["model.onnx"]
    assert [event.kind for event in events] == ["parity"]


def test_the_file_tells_what_it_is_of_and_how_to_use_it(run_context, checkpoint_of, tmp_path: Path) -> None:
    """Also when it was simplified, and in INT8."""
    context = replace(run_context(), step="ab12")
    source = checkpoint_of(context)
    outcome = Export(Export.Config()).run({"source": (source,)}, tmp_path, context)
    told = inspect_onnx(outcome.artifacts[0].main_file)["metadata"]
    assert (told["deploycompress.source"], told["deploycompress.step"]) == (source.sha256, "ab12")
    assert json.loads(told["deploycompress.preprocessing"]) == {
        **{"kind": "image", "height": 8, "width": 8, "channels": "L", "layout": "NCHW"},
        **{"divisor": 16, "mean": [0.3055], "std": [0.3245]},
    }
    quantized = tmp_path / "int8"
    quantized.mkdir()
    made = Quantize(Quantize.Config()).run({"source": outcome.artifacts}, quantized, context)
    kept = inspect_onnx(made.artifacts[0].main_file)["metadata"]
    assert {name: kept[name] for name in told} == told


def test_weights_beside_the_file_make_a_folder(
    run_context, checkpoint_of, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(graph_export, "LARGEST_FILE_BYTES", 100)
    context = run_context()
    outcome = Export(Export.Config()).run({"source": (checkpoint_of(context),)}, tmp_path, context)
    (made,) = outcome.artifacts
    assert [f.name for f in made.files] == ["model.onnx", "model.onnx.data"]
    assert made.main_file == tmp_path / "model" / "model.onnx"
    assert [note.kind for note in outcome.notes] == ["fell_back"]


def test_the_rehearsal_exports_too(run_context, checkpoint_of, tmp_path: Path) -> None:
    context = run_context(batch=2, rehearsal=True)
    outcome = Export(Export.Config()).run({"source": (checkpoint_of(context),)}, tmp_path, context)
    assert inspect_onnx(outcome.artifacts[0].path)["inputs"]["image"]["shape"] == [2, 1, 8, 8]
    assert outcome.artifacts[0].details["simplified"] is False


def test_named_dimensions_are_checked_at_another_size(run_context, tmp_path: Path) -> None:
    (tmp_path / "free.py").write_text(
        "from torch import nn\n\n\nclass Free(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 10, 3, padding=1)\n\n    def forward(self, image):\n"
        "        assert image.shape[2] > 4, 'too low'\n        return self.conv(image).mean((2, 3))\n"
    )
    inputs = {"image": InputSpec(shape=("batch", 1, "height", "width"))}
    model = SourceModel(ModelConfig(build=f"{tmp_path / 'free.py'}:Free", inputs=inputs), 0)
    context = replace(run_context(), model=model)
    checkpoint.save(model.build(), tmp_path / "model", model)
    source = {"source": (Artifact.of("model", "checkpoint", tmp_path / "model"),)}
    outcome = Export(Export.Config()).run(source, tmp_path, context)
    described = inspect_onnx(outcome.artifacts[0].path)
    assert described["inputs"]["image"]["shape"] == ["batch", 1, "height", "width"]
    assert [note.kind for note in outcome.notes] == ["skipped"]  # the height; the width was checked
    assert "the model itself does not run on {'image': [16, 1, 4, 8]}" in outcome.notes[0].message


def test_the_configuration_is_strict() -> None:
    assert Export.Config(simplify=False).simplify is False
    assert Export.Config(simplify="onnxslim").simplify == "onnxslim"
    for wrong in ({"opset": 5}, {"simplify": "polish"}, {"opsett": 18}):
        with pytest.raises(ValidationError):
            Export.Config(**wrong)


def test_a_missing_library_is_named(run_context, monkeypatch) -> None:
    Export(Export.Config()).requires(run_context())
    monkeypatch.setattr(
        "deploycompress.stages.export.find_spec", lambda name: None if name == "onnxsim" else name
    )
    Export(Export.Config(simplify=False)).requires(run_context())
    with pytest.raises(EnvironmentMissing, match="export needs onnxsim; install with: pip install onnxsim"):
        Export(Export.Config()).requires(run_context())
