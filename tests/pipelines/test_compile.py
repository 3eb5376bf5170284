"""A run in which compile chooses: what it leaves, and what it says of what it did not take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A brief one: no INT8 by NNCF, one epoch."""
    folder = tmp_path_factory.mktemp("compile")
    candidates = "[{runtime: openvino, precision: fp32}, {runtime: onnxruntime, scheme: u8s8, threads: [1]}]"
    changes = ["train.epochs=1", "gates.latency_p50.min_speedup=0.01", f"compile.candidates={candidates}"]
    changes += ["compile.max_drop=100 pp", "gates.accuracy.max_drop=100 pp"]
    command = [
        sys.executable,
        "-m",
        "deploycompress",
        "run",
        str(ROOT / "pipelines" / "fastest-runtime.yaml"),
    ]
    for change in changes:
        command += ["--set", change]
    done = subprocess.run(
        [*command, "--out", str(folder / "run"), "--store", str(folder / "store")],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_the_report_has_what_was_tried_and_where_operators_run(run_dir: Path) -> None:
    report = json.loads((run_dir / "report.json").read_text())
    tried = {row["id"]: row for row in report["tried"]}
    assert set(tried) == {"openvino-fp32.t2", "openvino-fp32.t1", "onnxruntime-int8-u8s8.t1"}
    for row in tried.values():
        assert row["p50_ms"] > 0 and row["speedup"]["low"] <= row["speedup"]["value"] and row["cosine"] > 0.9
    kept = {a["id"].removeprefix("compile/") for a in report["artifacts"] if a["stage"] == "compile"}
    assert kept == {id for id, row in tried.items() if not row["reason"]}
    page = (run_dir / "report.html").read_text()
    assert "What was tried" in page and "Where the operators run" in page
    assert report["baseline"] in report["placement"]
    operators = report["placement"][report["baseline"]]
    assert any(o["op"] == "Conv" and o["provider"] == "CPUExecutionProvider" for o in operators)
    assert sum(o["ms"] for o in operators) > 0


def test_what_was_kept_was_measured_as_it_was_chosen(run_dir: Path) -> None:
    report = json.loads((run_dir / "report.json").read_text())
    rows = [row for row in report["measurements"] if row["artifact"].startswith("compile/")]
    assert rows
    for row in rows:
        (made,) = (a for a in report["artifacts"] if a["id"] == row["artifact"])
        assert row["at_target"] and row["runtime"] == made["details"]["runtime"]
        assert row["threads"] == made["details"]["threads"]
        there = row["runtime"] == "onnxruntime"
        assert (row["speedup_vs_target"] is None) == there and row["speedup"] is not None
    elsewhere = [
        row
        for row in report["measurements"]
        if row["artifact"] == report["baseline"] and not row["at_target"]
    ]
    assert {row["runtime"] for row in elsewhere} == {row["runtime"] for row in rows} - {"onnxruntime"}


def test_the_example_that_ships_runs(run_dir: Path) -> None:
    program = run_dir / "artifacts" / "infer.py"
    done = subprocess.run(
        [sys.executable, "-I", str(program)], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(1, 10)" in done.stdout
    assert len([line for line in program.read_text().splitlines() if line.strip()]) <= 20
