"""TensorRT by trtexec: what it is told and what is read of it, with a script that has its options and formats.

The script was written after NVIDIA/TensorRT's samples/common; no real trtexec was at hand.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from device_lab import Sshd

from deploycompress.devices.answers import answers
from deploycompress.devices.building import build_on
from deploycompress.devices.jobs import Candidate, measure
from deploycompress.devices.local import Local
from deploycompress.devices.ssh import Ssh
from deploycompress.errors import StageFailed
from deploycompress.measure.plan import Plan

FEED = {"x": np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)}
Make = Callable[[str, int], Path]

# An engine is the ONNX file behind a mark. Times are said in milliseconds: 1.5 to compute, 0.25 each way.
TRTEXEC = """#!{python}
import json, sys
import numpy as np
import onnxruntime

MARK = b"engine of {version} "
known = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{version}]")
with open("{log}", "a") as log:
    log.write(json.dumps(known) + "\\n")
BOTH = {{"help", "onnx", "saveEngine", "loadEngine", "skipInference", "stronglyTyped", "builderOptimizationLevel",
    "minShapes", "optShapes", "maxShapes", "memPoolSize", "timingCacheFile", "versionCompatible", "loadInputs", "shapes",
    "hardwareCompatibilityLevel", "warmUp", "duration", "iterations", "avgRuns", "useSpinWait", "exportTimes",
    "exportOutput", "noDataTransfers"}}
unknown = set(known) - BOTH - ({{"noCudaGraph", "includeDataTransfers"}} if {version} >= 110000 else set())
if unknown:
    print("[E] Unknown option: " + " ".join(sorted(unknown)))
    sys.exit(1)
if "onnx" in known:
    if "minShapes" in known and "maxShapes" not in known:
        sys.exit("[E] no maxShapes")
    data = open(known["onnx"], "rb").read()
    if b"Refused" in data:
        print("[E] [TRT] ModelImporter.cpp:1 no plugin for Refused")
        sys.exit(1)
    open(known["saveEngine"], "wb").write(MARK + data)
if "loadEngine" in known:
    data = open(known["loadEngine"], "rb").read()
    if not data.startswith(MARK):
        print("[E] Error Code 1: Serialization (Version tag does not match)")
        sys.exit(1)
    shapes = dict(word.rsplit(":", 1) for word in known["shapes"].split(","))
    files = dict(word.rsplit(":", 1) for word in known["loadInputs"].split(","))
    feed = {{n: np.fromfile(f, np.float32).reshape([int(s) for s in shapes[n].split("x")]) for n, f in files.items()}}
    session = onnxruntime.InferenceSession(data[len(MARK):])
    outputs = session.run(None, feed)
    if "exportOutput" in known:
        with open(known["exportOutput"], "w") as stream:
            for number, (of, array) in enumerate(zip(session.get_outputs(), outputs)):
                stream.write(", " if number else "[\\n  ")
                shape, values = "x".join(map(str, array.shape)), ", ".join("%g" % v for v in array.ravel())
                stream.write('{{ "name" : "%s"\\n  , "dimensions" : "%s"\\n  , "values" : [ %s ]\\n  }}\\n' % (of.name, shape, values))
            stream.write("]\\n")
    if "exportTimes" in known:
        warm = int(known["warmUp"])
        starts = [0.0, warm - 1.0, *(float(warm + n) for n in range(max(int(known["iterations"]), 20)))]
        calls = [{{"startComputeMs": s, "endComputeMs": s + 1.5, "h2dMs": 0.25, "computeMs": 1.5 if s >= warm else 99.0,
            "d2hMs": 0.25, "latencyMs": 2.0 if s >= warm else 99.0}} for s in starts]
        json.dump(calls, open(known["exportTimes"], "w"))
"""


@pytest.fixture(params=["101303", "110000"])
def told(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, str]]]:
    """A trtexec in PATH; gives the options of each time that it was run."""
    log, place = tmp_path / "told.jsonl", tmp_path / "bin" / "trtexec"
    place.parent.mkdir()
    place.write_text(TRTEXEC.format(python=sys.executable, version=request.param, log=log))
    place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def built(device: Local, path: Path, **options) -> tuple[Path, dict]:
    place = path.with_suffix(".engine")
    profile = {"x": [[1, 64], [2, 64], [16, 64]]}
    made = build_on(
        device, Candidate("it", path, "trtexec", "cuda", options={"profile": profile, **options}), place
    )
    return place, dict(made.told)


def test_an_engine_is_built_run_and_timed(told, device: Local, made: Make, tmp_path: Path) -> None:
    options = {
        "workspace_bytes": 3 << 20,
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
    }
    engine, said = built(device, made("it", 3), **options)
    eleven = said["tensorrt"] == "11.0.0"
    assert eleven or said["tensorrt"] == "10.13.3"
    build = told()[0]
    assert (build["minShapes"], build["optShapes"], build["maxShapes"]) == ("x:1x64", "x:2x64", "x:16x64")
    assert build["memPoolSize"] == "workspace:3M" and build["hardwareCompatibilityLevel"] == "ampere+"
    assert {"stronglyTyped", "skipInference", "versionCompatible"} <= set(build)

    (found,) = answers(device, Candidate("it", engine, "trtexec", "cuda"), [FEED])
    assert found["y"].shape == (2, 64) and np.allclose(found["y"], FEED["x"], atol=1e-5)

    rows = measure(
        device,
        [
            Candidate("whole", engine, "trtexec", "cuda"),
            Candidate("compute", engine, "trtexec", "cuda", options={"transfers": False}),
        ],
        baseline="whole",
        feed=FEED,
        plan=Plan(blocks=2, block_ms=20, warmup_ms=20, least_samples=64),
        workdir=tmp_path,
    )
    assert rows["whole"].latency_ms.mean == pytest.approx(2.0)  # none of the warm-up, which took 99 ms
    assert rows["compute"].latency_ms.mean == pytest.approx(1.5)
    assert rows["whole"].latency_ms.samples >= 64 and rows["whole"].peak_memory_bytes is None
    timed = [words for words in told() if "exportTimes" in words]
    ways = {frozenset(words) & {"noDataTransfers", "includeDataTransfers", "noCudaGraph"} for words in timed}
    assert all("useSpinWait" in words for words in timed)
    rounds = len(json.loads((tmp_path / str(rows["whole"].samples)).read_text())["disturbed"])
    assert rounds in (2, 3)  # one more where a round was disturbed
    assert len(timed) == 2 * (1 + rounds)  # of each the warm-up and the blocks, which warm up by themselves
    assert ways == (
        {frozenset({"noCudaGraph", "includeDataTransfers"}), frozenset({"noCudaGraph"})}
        if eleven
        else {frozenset(), frozenset({"noDataTransfers"})}
    )


def test_what_it_refuses_is_said_in_its_words(told, device: Local, made: Make, tmp_path: Path) -> None:
    refused = onnx.load(made("it", 3))
    refused.graph.node[0].name = "Refused"
    onnx.save(refused, tmp_path / "refused.onnx")
    with pytest.raises(
        StageFailed, match=r"no engine was built on local by trtexec: .* no plugin for Refused"
    ):
        built(device, tmp_path / "refused.onnx")
    other = tmp_path / "other.engine"
    other.write_bytes(b"of another version")
    with pytest.raises(StageFailed, match=r"trtexec ended with code 1: .*Version tag does not match"):
        list(answers(device, Candidate("it", other, "trtexec", "cuda"), [FEED]))


def test_numbers_that_json_has_not(told, device: Local, made: Make) -> None:
    engine, _ = built(device, made("it", 3))
    feed = {"x": np.array([[np.nan, np.inf, -np.inf, *range(61)]], np.float32)}
    (found,) = answers(device, Candidate("it", engine, "trtexec", "cuda"), [feed])
    assert np.isnan(found["y"]).any()


def test_without_it_the_device_says_so_first(board: Sshd) -> None:
    missing = Ssh("board", board.config()).missing("trtexec")
    assert missing == (
        "device board: there is neither trtexec nor /usr/src/tensorrt/bin/trtexec; install it there"
    )
