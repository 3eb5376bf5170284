"""Models that the user names beside the run's own: really exported, measured and judged; what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploycompress.artifact import Artifact
from deploycompress.config.reader import dump, read
from deploycompress.config.schema import Network
from deploycompress.errors import ConfigError
from deploycompress.measure.plan import MODES, Plan
from deploycompress.stages.benchmark import Benchmark

RIVALS = """
from torch import nn


def build(classes: int = 10, channels: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, classes))
"""


@pytest.fixture
def rivals(tmp_path: Path) -> str:
    (tmp_path / "rivals.py").write_text(RIVALS)
    return f"{tmp_path / 'rivals.py'}:build"


def onnx_file(path: Path, classes: int = 10, channels: int = 1, batch: str | int = "n") -> Path:
    """One that somebody else exported: its input is called x."""
    module = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, classes)).eval()
    dynamic = {"x": {0: batch}, "y": {0: batch}} if isinstance(batch, str) else None
    example = torch.zeros(2 if isinstance(batch, str) else batch, channels, 8, 8)
    torch.onnx.export(
        module, (example,), path, input_names=["x"], output_names=["y"], dynamic_axes=dynamic, dynamo=False
    )
    return path


def ran(context: Any, workdir: Path, export: Artifact, /, **competitors: Any) -> Any:
    baseline = replace(export, id="baseline")
    stage = Benchmark(Benchmark.Config(competitors=competitors))
    stage.requires(context)
    return stage.run({"source": (export,), "baseline": (baseline,)}, workdir, context)


def test_competitors_are_measured_and_judged_beside_the_run_s_own(
    run_context, exported_of, rivals: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(MODES, "quick", Plan(6, 10.0, 10.0, 64))
    context = run_context()
    weights = tmp_path / "small.safetensors"
    save_file(context.model.other(Network(build=rivals, weights=None)).build().state_dict(), weights)
    workdir = tmp_path / "work"
    workdir.mkdir()
    outcome = ran(
        context,
        workdir,
        exported_of(context),
        small=Network(build=rivals, weights=weights),
        given=onnx_file(tmp_path / "given.onnx"),
    )
    rows = {m.artifact: m for m in outcome.measurements}
    assert list(rows) == ["baseline", "export", "small", "given"]
    for name in ("small", "given"):
        assert rows[name].speedup is not None and rows[name].latency_ms.samples >= 64
        assert 0 <= rows[name].metrics["accuracy"] <= 1
    assert outcome.artifacts == (), "what the run did not make goes on to no other step"
    told = {entry["id"]: Artifact.from_json(entry, workdir) for entry in outcome.details["competitors"]}
    assert {name: of.path for name, of in told.items()} == {
        "small": workdir / "competitors" / "small" / "model.onnx",
        "given": workdir / "competitors" / "given" / "model.onnx",
    }
    assert [i.name for i in onnx.load(told["given"].path).graph.input] == ["image"]  # it was called x
    assert not list((workdir / "competitors").rglob(".export-*"))
    # The scores that accuracy is compared by are those of the same samples.
    samples = outcome.details["test_samples"]
    assert (workdir / "scores.json").is_file() and samples == 600


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": 1000}, r"competitors\.rival: it gives \[2, 1000\] where the model gives \[2, 10\]"),
        (
            {"channels": 3},
            r"competitors\.rival: it does not take the model's inputs \(image \[2, 1, 8, 8\]\)",
        ),
    ],
)
@pytest.mark.parametrize("form", ["network", "file"])
def test_one_that_does_not_fit_is_refused_before_anything_is_measured(
    run_context, exported_of, rivals: str, form: str, given: dict[str, int], message: str, tmp_path: Path
) -> None:
    context = run_context(rehearsal=True)
    rival = Network(build=rivals, args=given, weights=None)
    named = rival if form == "network" else onnx_file(tmp_path / "rival.onnx", **given)
    with pytest.raises(ConfigError, match=message) as caught:
        ran(context, tmp_path, fake_export(tmp_path), rival=named)
    assert caught.value.exit_code == 2


def fake_export(folder: Path) -> Artifact:
    """Nothing opens it: competitors are looked at first."""
    (folder / "export.onnx").write_bytes(b"nothing")
    return Artifact.of("export", "onnx", folder / "export.onnx")


def test_other_refusals_name_the_competitor(run_context, rivals: str, tmp_path: Path) -> None:
    context, export = run_context(rehearsal=True), fake_export(tmp_path)
    with pytest.raises(ConfigError, match=r"competitors\.export: an artefact of this run has that name"):
        ran(context, tmp_path, export, export=onnx_file(tmp_path / "a.onnx"))
    weights = tmp_path / "wrong.safetensors"
    save_file({"0.weight": torch.zeros(1)}, weights)
    said = r"competitors\.a\.weights: .* does not fit the model; missing in the file: .*competitors\.a\.build"
    with pytest.raises(ConfigError, match=said):
        ran(context, tmp_path / "1", export, a=Network(build=rivals, weights=weights))
    (tmp_path / "broken.onnx").write_bytes(b"no ONNX")
    with pytest.raises(ConfigError, match=r"competitors\.b: .*broken\.onnx is refused"):
        ran(context, tmp_path / "2", export, b=tmp_path / "broken.onnx")


def test_a_runtime_that_opens_no_competitor_is_said_before_anything_runs(
    run_context, rivals: str, tmp_path: Path
) -> None:
    context = run_context(runtime="pytorch")
    Benchmark(Benchmark.Config(competitors={"a": Network(build=rivals, weights=None)})).requires(context)
    with pytest.raises(ConfigError, match=r"competitors\.a: the target's runtime pytorch opens checkpoint"):
        Benchmark(Benchmark.Config(competitors={"a": tmp_path / "a.onnx"})).requires(context)


def test_a_library_s_network_without_weights_is_told_of(run_context, tmp_path: Path) -> None:
    from deploycompress.graph.competitors import _untrained

    plain = Network(build="torchvision:resnet18", weights=None)
    (note,) = _untrained("a", plain)
    assert note.kind == "warning" and "only its speed and size" in note.message
    assert not _untrained("a", plain.model_copy(update={"args": {"weights": "DEFAULT"}}))
    assert not _untrained("a", Network(build="mine.py:build", weights=None))  # it may load its own


PIPELINE = """
name: tiny
model:
  build: rivals.py:build
  inputs: {image: {shape: [batch, 1, 8, 8]}}
data: {source: digits, image_size: 8}
stages:
  - train
  - export
  - benchmark: {competitors: COMPETITORS}
"""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{a: nothing.onnx}", "competitors.a: 'nothing.onnx' does not exist; did you mean theirs.onnx?"),
        ("{a: rivals.py}", "competitors.a: received 'rivals.py': expected a file ending in .onnx, or {build, args"),
        ("{a: 3}", "competitors.a: received 3, expected a path"),
        ("{a: {args: {}}}", "competitors.a.build: the key 'build' is missing: module:function"),
        ("{a: {build: 'rivals.py:biuld'}}", "'rivals.py:biuld': rivals.py has no 'biuld'; did you mean 'build'?"),
        ("{a: {build: 'rivals.py:build', wights: w}}", "unknown key 'wights'; did you mean 'weights'?"),
        ("{a: {build: 'rivals.py:build', weights: w.pt}}", "competitors.a.weights: 'w.pt' does not exist"),
        ("{a b: theirs.onnx}", "received 'a b', expected letters, digits, '_' and '-', beginning with a letter"),
        ("[theirs.onnx]", "competitors: received a list of 1, expected a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_told_once_and_before_anything_runs(
    rivals: str, tmp_path: Path, given: str, message: str
) -> None:
    (tmp_path / "theirs.onnx").write_bytes(b"looked into later")
    (tmp_path / "pipeline.yaml").write_text(PIPELINE.replace("COMPETITORS", given))
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "pipeline.yaml")
    (problem,) = caught.value.problems
    assert message in str(problem)


def test_what_is_read_is_written_and_read_again(rivals: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.onnx").write_bytes(b"looked into later")
    both = "{a: theirs.onnx, b: {build: 'rivals.py:build', args: {classes: 10}}}"
    (tmp_path / "pipeline.yaml").write_text(PIPELINE.replace("COMPETITORS", both))
    config = read(tmp_path / "pipeline.yaml")
    competitors = config.stages[-1].config.competitors
    assert competitors["a"] == tmp_path / "theirs.onnx" and competitors["b"].build == rivals
    (tmp_path / "again.yaml").write_text(dump(config))
    assert read(tmp_path / "again.yaml") == config
    stage = Benchmark(config.stages[-1].config)
    assert stage.inputs()["competitors.a"] == str(tmp_path / "theirs.onnx")
