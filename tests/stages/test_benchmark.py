"""The benchmark stage: measurements of every artefact, and its accuracy on the test split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploycompress.artifact import Artifact
from deploycompress.errors import ConfigError, EnvironmentMissing, Interrupted
from deploycompress.graph.export import export_onnx
from deploycompress.measure.plan import MODES, Plan
from deploycompress.stages.benchmark import Benchmark
from deploycompress.stages.quantize import Quantize


@pytest.fixture
def artifacts(run_context, exported_of, tmp_path: Path):
    """(baseline, the same file again as an export, an INT8 file)."""
    context = run_context()
    export = exported_of(context)
    workdir = tmp_path / "quantized"
    workdir.mkdir()
    outcome = Quantize(Quantize.Config()).run({"source": (export,)}, workdir, context)
    return replace(export, id="baseline"), export, replace(outcome.artifacts[0], id="quantize")


@pytest.fixture
def brief(monkeypatch) -> None:
    monkeypatch.setitem(MODES, "quick", Plan(6, 10.0, 10.0, 64))


def test_every_artefact_in_every_setting(run_context, artifacts, brief, tmp_path: Path) -> None:
    baseline, export, int8 = artifacts
    context = run_context()
    stage = Benchmark(Benchmark.Config(threads=(2,), batch_sizes=(1, 8)))
    stage.requires(context)
    outcome = stage.run({"source": (export, int8), "baseline": (baseline,)}, tmp_path, context)
    rows = [(m.artifact, m.threads, m.batch_size) for m in outcome.measurements]
    ids = ("baseline", "export", "quantize")
    assert rows == [(id, threads, batch) for threads, batch in ((1, 1), (2, 1), (1, 8)) for id in ids]
    for row in outcome.measurements:
        assert (row.speedup is None) == (row.artifact == "baseline")
        assert row.latency_ms.p90 is not None and row.latency_ms.samples >= 64
        assert row.precision == ("int8" if row.artifact == "quantize" else "fp32")
        assert (tmp_path / str(row.samples)).is_file()
        assert 0 <= row.metrics["accuracy"] <= 1
    assert len({m.samples for m in outcome.measurements}) == 9
    assert outcome.artifacts == ()


def test_the_baseline_runs_twice_and_what_it_differs_by_is_known(
    run_context, artifacts, brief, tmp_path: Path
) -> None:
    baseline, export, int8 = artifacts
    stage = Benchmark(Benchmark.Config(times=2))
    outcome = stage.run({"source": (export, int8), "baseline": (baseline,)}, tmp_path, run_context())
    (floor,) = {row.noise_floor for row in outcome.measurements}
    assert floor is not None and 0 <= floor < 3
    assert [row.artifact for row in outcome.measurements] == ["baseline", "export", "quantize"]
    raw = json.loads((tmp_path / str(outcome.measurements[0].samples)).read_text())
    assert 12 <= len(raw["blocks"]) + len(raw["set_aside"]) <= 18  # times 2


CAMERA = """
import time
import numpy as np

def prepare(path):
    time.sleep(0.01)
    return np.load(path)[None, None]

def label(outputs):
    (logits,) = outputs.values()
    return int(logits.argmax())

def wrong(path):
    return np.zeros((3, 3), np.float32)
"""


def test_code_before_and_after_is_timed_apart(run_context, artifacts, brief, tmp_path: Path) -> None:
    baseline, export, _ = artifacts
    code, sample = tmp_path / "camera.py", tmp_path / "frame.npy"
    code.write_text(CAMERA)
    np.save(sample, np.zeros((8, 8), np.float32))

    def measured(preprocess: str):
        config = Benchmark.Config(
            preprocess=f"{code}:{preprocess}", sample=sample, postprocess=f"{code}:label"
        )
        inputs = {"source": (export,), "baseline": (baseline,)}
        return Benchmark(config).run(inputs, tmp_path, run_context())

    outcome = measured("prepare")
    assert 10 <= outcome.metrics["preprocess_ms"] < 30 and outcome.metrics["postprocess_ms"] < 5
    assert outcome.details["around"]["preprocess"]["samples"] >= 20
    with pytest.raises(ConfigError, match=r"preprocess gives image of shape \[3, 3\]"):
        measured("wrong")


def test_preprocess_wants_a_file() -> None:
    with pytest.raises(ValueError, match="preprocess reads the file `sample`; expected both of them"):
        Benchmark.Config(preprocess="camera.py:prepare")


def test_what_zeros_bring_is_measured_beside_the_same_file_without(
    run_context, brief, tmp_path: Path
) -> None:
    context = run_context()
    module = context.model.build()
    with torch.no_grad():
        module[5].weight[:, 8:] = 0.0
    path = tmp_path / "model.onnx"
    export_onnx(module, context.model, path, feeds=[context.model.example(2)])
    sparse = Artifact.of("export", "onnx", path)
    stage = Benchmark(Benchmark.Config())
    (tmp_path / "work").mkdir()
    found = stage.run({"source": (sparse,)}, tmp_path / "work", context).details["sparse"]["export"]
    assert 0.5 < found["zeros"] < 0.7 and found["low"] <= found["value"] <= found["high"]
    assert 0.5 < found["value"] < 2  # no kernel here skips a zero
    assert not list((tmp_path / "work").rglob("*.onnx"))


def test_nothing_is_told_of_files_without_zeros(run_context, artifacts, brief, tmp_path: Path) -> None:
    baseline, export, _ = artifacts
    outcome = Benchmark(Benchmark.Config()).run(
        {"source": (export,), "baseline": (baseline,)}, tmp_path, run_context()
    )
    assert outcome.details["sparse"] == {}


def test_accuracy_is_the_artefacts_own(run_context, artifacts, brief, tmp_path: Path) -> None:
    baseline, export, int8 = artifacts
    context = run_context()
    stage = Benchmark(Benchmark.Config(corruptions=("noise", "blur"), severities=(1, 5)))
    outcome = stage.run({"source": (export, int8), "baseline": (baseline,)}, tmp_path, context)
    details = outcome.details
    assert details["primary"] == {"name": "accuracy", "higher_is_better": True, "unit": "share"}
    assert (details["baseline"], details["test_samples"], details["scores"]) == (
        "baseline",
        600,
        "scores.json",
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == set(details["per_class"]) == {"baseline", "export", "quantize"}
    assert scores["baseline"] == scores["export"] and set(scores["quantize"]) <= {0, 1}
    for row in outcome.measurements:
        assert sum(scores[row.artifact]) / 600 == pytest.approx(row.metrics["accuracy"])
        assert min(details["per_class"][row.artifact].values()) == pytest.approx(row.metrics["worst_class"])
    corrupted = json.loads((tmp_path / details["corrupted"]).read_text())
    assert corrupted["baseline"] == corrupted["export"] != corrupted["quantize"]
    for row in outcome.measurements:
        for name in ("accuracy_noise", "accuracy_blur"):
            assert len(corrupted[row.artifact][name]) == 600
            assert sum(corrupted[row.artifact][name]) / 600 == pytest.approx(row.metrics[name])
        assert row.metrics["accuracy_noise"] != row.metrics["accuracy"]
    assert details["figures"]["accuracy_noise"] == {**details["primary"], "name": "accuracy_noise"}


def test_a_severity_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="severities"):
        Benchmark.Config(corruptions=("noise",), severities=(6,))


def test_the_rehearsal_is_short(run_context, artifacts, tmp_path: Path) -> None:
    baseline, export, _ = artifacts
    context = run_context(rehearsal=True)
    outcome = Benchmark(Benchmark.Config(mode="full")).run(
        {"source": (export,), "baseline": (baseline,)}, tmp_path, context
    )
    assert [m.artifact for m in outcome.measurements] == ["baseline", "export"]
    assert all(m.latency_ms.p99 is None or m.latency_ms.seconds < 1 for m in outcome.measurements)


def test_a_fixed_batch_is_measured_at_its_own_size(run_context, exported_of, brief, tmp_path: Path) -> None:
    context = run_context(4, batch_size=4)
    export = exported_of(context)
    outcome = Benchmark(Benchmark.Config(batch_sizes=(1,))).run(
        {"source": (export,), "baseline": ()}, tmp_path, context
    )
    assert [m.batch_size for m in outcome.measurements] == [4]
    assert [n.message for n in outcome.notes] == ["not measured at batch size 1: its batch is fixed at 4"]
    assert outcome.details["test_samples"] == 600


def test_nothing_to_measure(run_context, artifacts, tmp_path: Path) -> None:
    engine = replace(artifacts[0], kind="engine")
    with pytest.raises(
        ConfigError, match=r"nothing that onnxruntime opens among \['engine'\]; add an export step"
    ):
        Benchmark(Benchmark.Config()).run({"source": (engine,), "baseline": ()}, tmp_path, run_context())


def test_a_stopped_run_leaves_at_once(run_context, artifacts, tmp_path: Path) -> None:
    context = replace(run_context(), stopping=lambda: True)
    with pytest.raises(Interrupted):
        Benchmark(Benchmark.Config()).run({"source": artifacts, "baseline": ()}, tmp_path, context)


def test_what_is_missing_is_said_before_anything_runs(run_context) -> None:
    Benchmark(Benchmark.Config()).requires(run_context())
    with pytest.raises(ConfigError, match="unknown device 'pi'; known: local"):
        Benchmark(Benchmark.Config(devices=("pi",))).requires(run_context())
    with pytest.raises(ConfigError, match="unknown runtime 'tflite'"):
        Benchmark(Benchmark.Config()).requires(run_context(runtime="tflite"))
    from deploycompress.runtimes.tensorrt import TensorRT

    if TensorRT().missing():
        with pytest.raises(EnvironmentMissing, match="the runtime tensorrt cannot run here: "):
            Benchmark(Benchmark.Config(runtimes=("tensorrt",))).requires(run_context())


def test_networks_are_measured_where_the_target_runs_them(
    run_context, checkpoint_of, exported_of, brief, tmp_path: Path
) -> None:
    """And not otherwise: they are what an ONNX file is made of."""
    context = run_context(runtime="pytorch")
    original = replace(checkpoint_of(context), id="train")
    pruned = replace(original, id="prune", sha256="another")
    inputs = {"source": (pruned,), "baseline": (original,), "original": (original,)}
    outcome = Benchmark(Benchmark.Config()).run(inputs, tmp_path, context)
    assert [(m.artifact, m.runtime, m.at_target) for m in outcome.measurements] == [
        ("train", "pytorch", True),
        ("prune", "pytorch", True),
    ]
    assert outcome.measurements[1].speedup is not None and outcome.details["baseline"] == "train"
    assert set(outcome.measurements[1].metrics) >= {"accuracy"}
    # Of where the code lies on this machine nothing is told.
    assert outcome.details["network"]["search_path"] == []
    assert outcome.details["network"]["config"]["build"] == "tiny_model.py:build"
    rows = json.loads((tmp_path / "placement.json").read_text())["prune"]
    assert [row["op"] for row in rows][:2] == ["Conv2d", "BatchNorm2d"]
    elsewhere = run_context()
    export = exported_of(elsewhere)
    inputs = {"source": (original, export), "baseline": (export,), "original": (original,)}
    (tmp_path / "other").mkdir()
    outcome = Benchmark(Benchmark.Config()).run(inputs, tmp_path / "other", elsewhere)
    assert {m.artifact for m in outcome.measurements} == {"export"} and outcome.details["network"] is None


def test_another_runtime_has_the_baseline_that_it_opens(
    run_context, checkpoint_of, exported_of, brief, tmp_path: Path
) -> None:
    context = run_context()
    original = replace(checkpoint_of(context), id="train")
    pruned = replace(original, id="prune", sha256="another")
    export = replace(exported_of(context), id="baseline")
    inputs = {"source": (pruned,), "baseline": (export,), "original": (original,)}
    outcome = Benchmark(Benchmark.Config(runtimes=("pytorch",))).run(inputs, tmp_path, context)
    rows = {(m.artifact, m.runtime): m for m in outcome.measurements}
    assert set(rows) == {("baseline", "onnxruntime"), ("train", "pytorch"), ("prune", "pytorch")}
    assert rows["prune", "pytorch"].speedup is not None and not rows["prune", "pytorch"].at_target
