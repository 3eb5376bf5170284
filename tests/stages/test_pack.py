"""The pack stage: packages that unpack to what was packed, with the zstd command as well."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import zstandard

from deploycompress.artifact import Artifact
from deploycompress.config.schema import AccuracyGate
from deploycompress.errors import StageFailed
from deploycompress.graph.clustering import cluster_weights, clustered
from deploycompress.graph.export import export_onnx
from deploycompress.stages.pack import Pack, unpack


@pytest.fixture
def wide(run_context, tmp_path: Path) -> Artifact:
    """The context's network with a weight that is large enough to be clustered."""
    context = run_context()
    module = context.model.build()
    module[5] = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    path = tmp_path / "wide" / "model.onnx"
    path.parent.mkdir()
    export_onnx(module, context.model, path, feeds=[context.model.example(2)])
    return Artifact.of("export", "onnx", path)


def packed(context, source, workdir: Path, **config):
    workdir.mkdir()
    stage = Pack(Pack.Config.model_validate(config))
    stage.requires(context)
    inputs = {"source": (source,), "baseline": (source,)}
    outcome = stage.run(inputs, workdir, context)
    assert stage.ensures(inputs, outcome, context) == {}
    return outcome


def test_a_file_comes_back_as_it_was(run_context, wide: Artifact, tmp_path: Path) -> None:
    outcome = packed(run_context(), wide, tmp_path / "work")
    (package,) = outcome.artifacts
    assert (package.kind, package.path.name) == ("package", "model.onnx.zst")
    assert package.details == {"of": wide.sha256, "unpacked_bytes": wide.bytes}
    assert outcome.metrics["packed_bytes"] == package.bytes < wide.bytes == outcome.metrics["bytes"]
    again = packed(run_context(), wide, tmp_path / "again").artifacts[0]
    assert again.sha256 == package.sha256
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-d", "-q", package.path, "-o", tmp_path / "unpacked"], check=True)
        assert (tmp_path / "unpacked").read_bytes() == wide.path.read_bytes()


def test_a_folder_comes_back_as_it_was(run_context, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "model"
    folder.mkdir(parents=True)
    (folder / "model.xml").write_text("<net/>" * 1000)
    (folder / "model.bin").write_bytes(bytes(range(256)) * 100)
    source = Artifact.of("compile", "openvino", folder)
    (package,) = packed(run_context(), source, tmp_path / "work").artifacts
    assert package.path.name == "model.tar.zst" and package.bytes < source.bytes


def test_fewer_values_are_fewer_bytes_and_run_as_before(run_context, wide: Artifact, tmp_path: Path) -> None:
    whole = packed(run_context(), wide, tmp_path / "whole").metrics["packed_bytes"]
    outcome = packed(run_context(), wide, tmp_path / "few", clusters=16)
    model, package = outcome.artifacts
    assert model.bytes == pytest.approx(wide.bytes, rel=0.01) and package.bytes < 0.6 * whole
    assert package.details["of"] == model.sha256 and outcome.metrics["clusters"] == 16
    sizes = {
        len(np.unique(onnx.numpy_helper.to_array(t)))
        for t in onnx.load(model.path).graph.initializer
        if np.prod(t.dims) >= 1024
    }
    assert sizes and max(sizes) <= 16


def test_more_values_where_fewer_lose_too_much(
    run_context, wide: Artifact, tmp_path: Path, monkeypatch
) -> None:
    """What is lost is told by the number of values here: an untrained network has nothing to lose."""
    from deploycompress.stages import pack

    def judge(inputs, configured, context):
        def lost(path: Path) -> float:
            weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
            return 1.0 / max(len(np.unique(w)) for w in weights if w.size >= 1024)

        return lost, 0.02

    monkeypatch.setattr(pack, "_judge", judge)
    outcome = packed(run_context(), wide, tmp_path / "work", clusters=8)
    assert outcome.metrics["clusters"] == 128
    assert [n.message for n in outcome.notes] == ["128 values a tensor, since 8 lose more than is allowed"]
    monkeypatch.setattr(pack, "_judge", lambda *_: (lambda path: 1.0, 0.0))
    outcome = packed(run_context(), wide, tmp_path / "none", clusters=8)
    assert [a.kind for a in outcome.artifacts] == ["package"]
    assert "not clustered: even 32768 values lose too much" in outcome.notes[0].message


def test_the_gate_says_what_clustering_may_lose(run_context, wide: Artifact, tmp_path: Path) -> None:
    from deploycompress.stages.pack import _judge

    context = replace(run_context(), gates={"accuracy": AccuracyGate(max_drop="2 pp")})
    lost, allowed = _judge({"source": (wide,), "baseline": (wide,)}, None, context)
    assert allowed == 0.02 and lost(wide.path) == 0.0


def test_clusters_are_the_nearest_centres_and_zeros_stay(tmp_path: Path) -> None:
    values = np.concatenate([np.random.default_rng(0).normal(m, 0.01, 500) for m in (-2, 1, 5)]).astype(
        np.float32
    )
    values[::7] = 0.0
    found = clustered(values, 4)
    assert (found[::7] == 0).all() and len(np.unique(found)) == 4
    np.testing.assert_allclose(sorted(np.unique(found)), [-2, 0, 1, 5], atol=0.01)
    assert np.abs(found - values).max() < 0.06
    few = np.float32([1, 2, 3])
    assert clustered(few, 16) is few


def test_a_damaged_package_and_one_that_leads_outside_are_refused(run_context, wide, tmp_path: Path) -> None:
    import io
    import tarfile

    context, stage = run_context(), Pack(Pack.Config())
    outcome = packed(context, wide, tmp_path / "work")
    package = outcome.artifacts[0]
    data = zstandard.ZstdCompressor().compress(b"something else")
    package.path.write_bytes(data)
    with pytest.raises(StageFailed, match=r"model.onnx.zst does not unpack to what was packed"):
        stage.ensures({"source": (wide,)}, outcome, context)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    (tmp_path / "evil.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(stream.getvalue()))
    (tmp_path / "place").mkdir()
    with pytest.raises(StageFailed, match=r"evil.tar.zst: .*outside"):
        unpack(tmp_path / "evil.tar.zst", tmp_path / "place")


def test_nothing_large_enough_is_left_as_it_is(exported_of, run_context, tmp_path: Path) -> None:
    source = exported_of(run_context())
    assert cluster_weights(source.path, tmp_path / "same.onnx", 8) == 0
    outcome = packed(run_context(), source, tmp_path / "work", clusters=8)
    assert outcome.notes[0].message == "the weights were not clustered: it has no large weights in FP32"
