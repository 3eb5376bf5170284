"""Every file in pipelines/ that brings its data runs as it is and passes its own gates.

Those that need the user's data run at toy size in tests/pipelines, and sweep-*.yaml in tests/sweep.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploycompress.config.reader import read
from deploycompress.graph.schemes import choose_scheme
from deploycompress.measure.environment import machine

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = {"digits"}  # data that come with a library
# Other tests run beside it, and disturb so many rounds that a latency decides nothing; a failure still fails.
WHATEVER_ELSE_RUNS = ("--set", "gates.latency_p50.on_inconclusive=warn")
FILES = sorted(p for p in (ROOT / "pipelines").glob("*.yaml") if not p.name.startswith("sweep-"))
PIPELINES = [p for p in FILES if read(p).data.source in EMBEDDED]
FIRST = "quickstart"  # what a new user types; the others take minutes, too


@pytest.mark.parametrize(
    "pipeline",
    [pytest.param(p, marks=() if p.stem == FIRST else pytest.mark.nightly) for p in PIPELINES],
    ids=lambda p: p.stem,
)
def test_it_runs_and_passes_its_gates(pipeline, tmp_path):
    command = [sys.executable, "-m", "deploycompress", "run", str(pipeline), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *(WHATEVER_ELSE_RUNS if "latency_p50" in read(pipeline).gates else ())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["verdict"] == "pass" and report["best"] is not None
    shipped = [a for a in report["artifacts"] if a["id"] == report["best"]["artifact"]]
    assert shipped and shipped[0]["bytes"] > 0
    for name in ("report.html", "summary.md", "junit.xml", "artifacts/manifest.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    if pipeline.stem == FIRST:
        _is_what_the_readme_says(report)
    if pipeline.stem == "fastest-runtime":
        _tells_what_was_tried(report, (tmp_path / "run" / "report.html").read_text())
        _ships_what_runs(tmp_path / "run" / "artifacts" / "infer.py")


def _is_what_the_readme_says(report):
    """Its FP32 file alone is three times faster and a quarter of the size, in the same runtime."""
    rows = {m["artifact"]: m for m in report["measurements"]}
    files = {a["id"]: a for a in report["artifacts"]}
    assert rows["export"]["precision"] == "fp32"
    assert rows["export"]["speedup"]["value"] >= 3.0
    assert files["export"]["bytes"] <= 0.25 * files["baseline"]["bytes"]
    assert rows["baseline"]["latency_ms"]["p50"] > 0.2, (
        "a latency of tens of microseconds would prove nothing"
    )


def _tells_what_was_tried(report, page):
    """Each candidate with its figures; what was kept was measured as it was chosen, and where its operators run."""
    tried = {row["id"]: row for row in report["tried"]}
    int8 = f"onnxruntime-int8-{choose_scheme('auto', machine())}.t1"
    assert {"openvino-fp32.t2", "openvino-int8.t1", int8, "onnxruntime-fp32.t1"} <= set(tried)
    assert "onnxruntime-fp32.t2" not in tried  # that is the source itself
    assert not [
        row["reason"]
        for row in tried.values()
        if row["reason"].startswith("not ") and "faster" not in row["reason"]
    ]
    kept = {a["id"].removeprefix("compile/") for a in report["artifacts"] if a["stage"] == "compile"}
    assert kept == {id for id, row in tried.items() if not row["reason"]}
    rows = [row for row in report["measurements"] if row["artifact"].startswith("compile/")]
    for row in rows:
        (made,) = (a for a in report["artifacts"] if a["id"] == row["artifact"])
        assert row["at_target"] and row["speedup"] is not None
        assert (row["runtime"], row["threads"]) == (made["details"]["runtime"], made["details"]["threads"])
        assert (row["speedup_vs_target"] is None) == (row["runtime"] == "onnxruntime")
    others = {row["runtime"] for row in report["measurements"] if not row["at_target"]}
    assert others == {row["runtime"] for row in rows} - {"onnxruntime"}  # the baseline there
    assert "What was tried" in page and "Where the operators run" in page
    operators = report["placement"][report["baseline"]]
    assert any(of["op"] == "Conv" and of["provider"] == "CPUExecutionProvider" for of in operators)
    assert sum(of["ms"] for of in operators) > 0


def _ships_what_runs(program):
    done = subprocess.run([sys.executable, "-I", str(program)], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(1, 10)" in done.stdout
    assert len([line for line in program.read_text().splitlines() if line.strip()]) <= 20
