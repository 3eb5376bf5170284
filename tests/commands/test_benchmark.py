"""``benchmark`` on small ONNX files that are really measured: what it says, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from deploycompress.artifact import Artifact
from deploycompress.cli import main
from deploycompress.commands.given import open_given
from deploycompress.commands.random_inputs import feed_for, wanted_inputs
from deploycompress.commands.side_by_side import distinct
from deploycompress.engine.store import seal
from deploycompress.measure.environment import machine


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, " ".join(said.err.replace("│", " ").split())


@pytest.mark.quiet
def test_more_layers_are_slower_at_each_batch_size(network, shortly, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, many = network(Path("one.onnx")), network(Path("many.onnx"), 6)
    file = tmp_path / "found.json"
    code, out, err = run(capsys, one, many, "--batch-size", 1, "--batch-size", 3, "--json", file)
    assert code == 0, err
    found = json.loads(file.read_text())
    assert (found["schema"], found["mode"], found["device"]) == (2, "quick", "local")
    assert found["facts"] == {"name": "local", **machine()}
    assert [s["batch_size"] for s in found["settings"]] == [1, 3]
    for setting in found["settings"]:
        first, second = setting["rows"]
        assert setting["inputs"] == {"x": {"dtype": "float32", "shape": [setting["batch_size"], 192]}}
        assert first["speedup"] is None and first["verdict"] is None
        assert second["verdict"] == "slower" and second["speedup"]["high"] < 1 / 1.03
        assert setting["noise_floor"] >= 0 and setting["again"]["speedup"]["value"] > 0
        latency = second["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"]
        assert (latency["p99"] is None) == (latency["samples"] < 662)
        assert second["throughput_per_s"] == pytest.approx(1000 * setting["batch_size"] / latency["mean"])
        assert second["bytes"] == many.stat().st_size and second["peak_memory_bytes"] > 1e6
        assert second["load_ms"] > 0 and second["first_inference_ms"] > 0
        assert any("many.onnx" in warning for warning in setting["warnings"])  # it computes something else
    verdicts = [line.split()[-1] for line in out.splitlines() if line.startswith("  many.onnx")]
    assert (
        verdicts == ["slower", "slower"]
        and "batch size 3: x 3x192 float32, in onnxruntime cpu, 1 thread" in out
    )
    assert "noise floor" in out


def test_a_file_beside_itself_has_two_rows(network, shortly, tmp_path, capsys):
    file, out = network(tmp_path / "one.onnx", 4), tmp_path / "found.json"
    code, said, err = run(capsys, file, file, "--json", out, "--samples", tmp_path / "kept")
    assert code == 0, err
    (setting,) = json.loads(out.read_text())["settings"]
    first, second = setting["rows"]
    for row in (first, second, setting["again"]):
        raw = json.loads(Path(row["samples"]).read_text())
        assert Path(row["samples"]).is_relative_to(tmp_path / "kept" / "batch1") and raw["unit"] == "ns"
        assert sum(map(len, raw["blocks"])) == row["latency_ms"]["samples"]
        assert (row["energy_mj"] is None) == (row["energy_of"] == []) and row["emulated"] is False
    assert second["cosine"] == pytest.approx(1.0) and setting["warnings"] == []
    assert first["verdict"] is None and f"{file.name} (2)" in said
    assert second["verdict"] in ("faster", "slower", "as fast", "cannot tell") and second["verdict"] in said


@pytest.mark.nightly
@pytest.mark.quiet
def test_a_file_beside_itself_is_neither_faster_nor_slower(network, tmp_path, capsys):
    file, out = network(tmp_path / "one.onnx", 4, shape=(64, 192)), tmp_path / "found.json"
    code, _, err = run(capsys, file, file, "--json", out)
    assert code == 0, err
    (setting,) = json.loads(out.read_text())["settings"]
    assert setting["rows"][1]["verdict"] in ("cannot tell", "as fast")


def test_the_noise_floor_of_one_file(network, shortly, tmp_path, capsys):
    code, out, err = run(capsys, network(tmp_path / "one.onnx"), "--aa")
    assert code == 0, err
    assert "one.onnx again" in out and "A/A" in out and "noise floor" in out
    code, out, _ = run(capsys, tmp_path / "one.onnx")
    assert code == 0 and "noise floor" not in out and "again" not in out


def test_openvino_opens_it_too(network, shortly, tmp_path, capsys):
    pytest.importorskip("openvino", reason="openvino is not installed")
    code, out, err = run(capsys, network(tmp_path / "one.onnx"), "--runtime", "openvino", "--threads", 2)
    assert code == 0 and "in openvino cpu, 2 threads" in out, err


def test_token_ids_stay_below_their_bound(tokens, shortly, tmp_path, capsys):
    path = tokens(tmp_path / "tokens.onnx")
    given = open_given(path, "tokens.onnx")
    feed, notes = feed_for([given], wanted_inputs(["ids=2x5:int64:10"]), None)
    assert feed["ids"].shape == feed["mask"].shape == (2, 5) and feed["ids"].dtype == np.int64
    assert 0 <= feed["ids"].min() < feed["ids"].max() < 10  # drawn, and all of them in the table
    assert (feed["mask"] == 1).all() and len(notes) == 1 and "'mask' is all ones" in notes[0]
    code, out, err = run(capsys, path, "--input", "ids=2x5:int64:10")
    assert code == 0 and "ids 2x5 int64, mask 2x5 int64" in out and "'mask' is all ones" in out, err
    code, _, err = run(capsys, path, "--input", "ids=1x5:int64:99")
    assert code == 4 and "was not measured" in err  # the table has ten rows


MISTAKES = {
    "nothing there": (["none.onnx"], "none.onnx does not exist; expected an ONNX file"),
    "no artefact": (["words.txt"], "is no artefact that can be measured"),
    "not ONNX": (["text.onnx"], "text.onnx is refused: "),
    "an empty file": (["empty.onnx"], "the file is empty"),
    "an empty folder": (["folder"], "folder holds no model.onnx, model.xml or model.engine"),
    "a run directory": (["run"], "run is a run directory"),
    "weights elsewhere": (["outside.onnx"], "leads outside the model's folder"),
    "a dynamic dimension": (["tokens.onnx"], "has dynamic dimensions, [batch, sequence]; say how large they are: --input ids=1xSIZE"),
    "another name": (["one.onnx", "other.onnx"], "do not take the same inputs: x and z"),
    "another shape": (["one.onnx", "wide.onnx"], "'x' is float32 1x192 in the one and float32 1x64 in the other"),
    "a fixed batch": (["fixed.onnx", "--batch-size", "4"], "the batch of the input 'x' is fixed at 2; received 4"),
    "a fixed size": (["one.onnx", "--input", "x=1x5"], "dimension 1 of the input 'x' is fixed at 192; received 5"),
    "another rank": (["one.onnx", "--input", "x=1x5x5"], "has 3 dimensions; the file declares [batch, 192]"),
    "another type": (["one.onnx", "--input", "x=1x192:int64"], "is int64; the file declares float32"),
    "an unknown type": (["one.onnx", "--input", "x=1x192:text"], "unknown type; known are float32"),
    "an unknown input": (["one.onnx", "--input", "z=1x192"], "--input names 'z'; the inputs are x"),
    "no shape": (["one.onnx", "--input", "x"], "received 'x'; expected NAME=SHAPE"),
    "too much": (["one.onnx", "--batch-size", "99999999"], "has more than 4294967296 bytes"),
    "a runtime": (["one.onnx", "--runtime", "onnx"], "unknown runtime 'onnx'"),
    "a runtime that does not open it": (["one.onnx", "--runtime", "pytorch"], "the runtime pytorch does not open it"),
    "a device": (["one.onnx", "--device", "moon"], "unknown device 'moon'"),
    "no file at all": ([], "Missing argument 'ARTEFACT...'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(network, tokens, tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "one.onnx")
    network(tmp_path / "other.onnx", name="z")
    network(tmp_path / "wide.onnx", shape=("batch", 64))
    network(tmp_path / "fixed.onnx", shape=(2, 192))
    network(tmp_path / "outside.onnx", external="../secret.bin")
    tokens(tmp_path / "tokens.onnx")
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "words.txt").write_text("neither is this")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")
    arguments, message = MISTAKES[case]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and message in err, err
    assert "Traceback" not in err


def engine(tmp_path, network, **changed):
    """ONNX Runtime's own file under an engine's name, with the manifest of the step that made it."""
    path = tmp_path / "made" / "model.engine"
    network(path)
    artifact = Artifact.of("engine", "engine", path, details={"runtime": "tensorrt", "provider": "cuda"})
    manifest = {"schema": 1, "artifacts": [artifact.to_json(path.parent) | changed]}
    (path.parent / "manifest.json").write_text(json.dumps(manifest | {"seal": seal(manifest)}))
    return path


def test_an_engine_is_opened_by_the_digest_in_a_manifest_of_ours(network, tmp_path, capsys):
    path = engine(tmp_path, network)
    assert open_given(path, "engine").made_for["runtime"] == "tensorrt"
    stranger = tmp_path / "model.engine"
    shutil.copyfile(path, stranger)
    code, _, err = run(capsys, stranger, "--input", "x=1x192")
    assert code == 2 and "an engine is executable code, and no manifest.json beside it has its digest" in err


@pytest.mark.parametrize("manifest", ["other digest", "broken seal", "no JSON", "a list"])
def test_a_manifest_that_is_not_ours_vouches_for_nothing(network, tmp_path, capsys, manifest):
    path = engine(tmp_path, network, **({"sha256": "0" * 64} if manifest == "other digest" else {}))
    file = path.parent / "manifest.json"
    if manifest == "broken seal":
        file.write_text(file.read_text().replace("cuda", "cpu"))
    elif manifest != "other digest":
        file.write_text({"no JSON": "{", "a list": "[]"}[manifest])
    code, _, err = run(capsys, path, "--input", "x=1x192")
    assert code == 2 and "is refused: an engine is executable code" in err


def test_what_a_file_was_made_for_is_taken_from_its_manifest(network, shortly, tmp_path, capsys):
    path = network(tmp_path / "model.onnx")
    artifact = Artifact.of("made", "onnx", path, details={"runtime": "onnxruntime", "threads": 2})
    (tmp_path / "manifest.json").write_text(
        json.dumps({"schema": 1, "artifacts": [artifact.to_json(tmp_path)]})
    )
    code, out, err = run(capsys, path)
    assert code == 0 and "onnxruntime cpu, 2 threads" in out, err
    code, out, err = run(capsys, path, "--threads", 1)
    assert code == 0 and "onnxruntime cpu, 1 thread" in out, err


def test_weights_beside_the_file_count_and_are_in_the_digest(network, tmp_path):
    path = network(tmp_path / "model.onnx", external="weights.bin")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(4 * 192 * 192))
    before = open_given(path, "model.onnx")
    assert before.bytes == path.stat().st_size + 4 * 192 * 192
    weights.write_bytes(b"1" * 4 * 192 * 192)
    assert open_given(path, "model.onnx").digest != before.digest


def test_outputs_that_are_no_numbers_are_no_figures(network, shortly, tmp_path, capsys):
    import onnx

    path = network(tmp_path / "nan.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = np.full((192, 192), math.nan, np.float32).tobytes()
    path.write_bytes(model.SerializeToString())
    code, _, err = run(capsys, path)
    assert code == 4 and "gives NaN or infinite outputs" in err


def test_names_are_told_apart():
    assert distinct(["a/b", "a-b", "a/b", "c"]) == ["a/b", "a-b (2)", "a/b (3)", "c"]
