"""The export stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from deploycompress.errors import EnvironmentMissing
from deploycompress.graph import export as graph_export
from deploycompress.graph.execution import inspect_onnx
from deploycompress.stages.export import Export


def test_a_checkpoint_becomes_a_checked_file(run_context, checkpoint_of, tmp_path: Path) -> None:
    events: list = []
    context = run_context(events=events)
    stage, inputs = Export(Export.Config(opset=19)), {"source": (checkpoint_of(context),)}
    workdir = tmp_path / "work"
    workdir.mkdir()
    outcome = stage.run(inputs, workdir, context)
    (made,) = outcome.artifacts
    assert made.path == workdir / "model.onnx" and made.kind == "onnx"
    assert made.details == {"exporter": "dynamo", "opset": 19, "simplified": True, "batchnorms_folded": 1}
    assert inspect_onnx(made.path)["inputs"]["image"]["shape"] == ["batch", 1, 8, 8]
    parity = stage.ensures(inputs, outcome, context)
    assert set(parity) == {"export_max_abs", "export_relative", "simplify_relative"}
    assert max(parity.values()) < 1e-4
    assert [p.name for p in workdir.iterdir()] == ["model.onnx"]
    assert [event.kind for event in events] == ["parity"]


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


def test_the_configuration_is_strict() -> None:
    assert Export.Config(simplify=False).simplify is False
    assert Export.Config(simplify="onnxsim").simplify == "onnxsim"
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
