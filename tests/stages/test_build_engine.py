"""The build_engine stage, as far as it goes without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploycompress.artifact import Artifact
from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.runtimes.tensorrt import TensorRT
from deploycompress.stages.build_engine import BuildEngine

HERE = TensorRT().missing()
without = pytest.mark.skipif(HERE is None, reason="TensorRT runs here")


@without
def test_where_it_cannot_run_the_reason_is_recorded(run_context, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"not read")
    context = run_context()
    stage, inputs = (
        BuildEngine(BuildEngine.Config(required=False)),
        {"source": (Artifact.of("", "onnx", source),)},
    )
    stage.requires(context)
    outcome = stage.run(inputs, tmp_path, context)
    assert outcome.artifacts == ()
    (note,) = outcome.notes
    assert (note.kind, note.message) == ("skipped", f"no engine was built: {HERE}")
    assert stage.ensures(inputs, outcome, context) == {}


@without
def test_where_it_cannot_run_and_must_nothing_is_begun(run_context) -> None:
    with pytest.raises(EnvironmentMissing, match="build_engine: tensorrt cannot run on local: "):
        BuildEngine(BuildEngine.Config()).requires(run_context())


@without
def test_that_it_was_missing_is_in_the_key(run_context) -> None:
    """So that a skipped step is not reused once there is a GPU."""
    assert BuildEngine(BuildEngine.Config()).depends(run_context())["missing"] == HERE


def test_another_runtime_builds_no_engines(run_context) -> None:
    with pytest.raises(
        ConfigError, match="the runtime 'openvino' builds no engines; use tensorrt, trtexec or onnxrun"
    ):
        BuildEngine(BuildEngine.Config(runtime="openvino")).requires(run_context())


def test_onnx_runtime_writes_a_file_for_this_processor(run_context, exported_of, tmp_path: Path) -> None:
    """Its operators are laid out for it already; it computes the same, and is run by ONNX Runtime alone."""
    from deploycompress.graph.execution import inspect_onnx
    from deploycompress.stages.benchmark import Benchmark

    context = run_context()
    source = replace(exported_of(context), id="export")
    stage = BuildEngine(BuildEngine.Config(runtime="onnxruntime"))
    stage.requires(context)
    outcome = stage.run({"source": (source,)}, tmp_path, context)
    (engine,) = outcome.artifacts
    assert (engine.kind, engine.path.name) == ("engine", "model.optimized.onnx")
    assert engine.details["options"] == {"graph_level": "off"}
    assert any(name.startswith("com.microsoft") for name in inspect_onnx(engine.path)["domains"])
    assert stage.ensures({"source": (source,)}, outcome, context)["engine_cosine"] > 0.999999
    measured = Benchmark(Benchmark.Config(runtimes=("openvino",))).run(
        {"source": (source, replace(engine, id="build_engine")), "baseline": (source,)}, tmp_path, context
    )
    rows = {(m.artifact, m.runtime): m for m in measured.measurements}
    assert set(rows) == {("export", "onnxruntime"), ("build_engine", "onnxruntime"), ("export", "openvino")}
    assert rows["build_engine", "onnxruntime"].metrics == rows["export", "onnxruntime"].metrics


def test_the_profile_follows_from_the_names(run_context, exported_of) -> None:
    context = run_context(batch_size=4)
    source = exported_of(context)
    stage = BuildEngine(BuildEngine.Config(largest_batch=8))
    assert stage._profile(source, context) == {"image": [[1, 1, 8, 8], [4, 1, 8, 8], [8, 1, 8, 8]]}
    fixed = run_context(3)
    assert stage._profile(exported_of(fixed), fixed) == {}


@pytest.mark.skipif(HERE is not None, reason=f"TensorRT cannot run here: {HERE}")
def test_builds_an_engine_that_computes_the_same(run_context, exported_of, tmp_path: Path) -> None:
    context = run_context(provider="cuda")
    stage, inputs = BuildEngine(BuildEngine.Config()), {"source": (exported_of(context),)}
    outcome = stage.run(inputs, tmp_path, context)
    assert stage.ensures(inputs, outcome, context)["engine_cosine"] > 0.999
