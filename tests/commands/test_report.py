"""``deploycompress report`` through a real process: what it writes, prints, imports, and how fast."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "matplotlib", "sklearn")
SCRIPT = f"""
import sys
from deploycompress.cli import main
try:
    main(sys.argv[1:])
finally:
    print("heavy:", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def example() -> dict[str, Any]:
    def row(id: str, p50: float, speedup: dict[str, float] | None) -> dict[str, Any]:
        latency = {"p50": p50, "p90": None, "p99": None, "mean": p50, "samples": 40, "seconds": 1.0}
        place = {"runtime": "onnxruntime", "device": "local", "threads": 1, "batch_size": 1}
        figures = {"peak_memory_bytes": None, "load_ms": None, "first_inference_ms": None}
        return {"artifact": id, **place, "latency_ms": latency, "speedup": speedup, **figures}

    return {
        "schema": 1,
        "name": "edge",
        "verdict": "fail",
        "exit_code": 5,
        "baseline": "baseline",
        "stages": [
            {"name": "prune", "kind": "prune", "seconds": 1.5, "reused": False, "metrics": {}, "notes": []}
        ],
        "artifacts": [
            {"id": id, "kind": "onnx", "path": f"{id}.onnx", "sha256": "0" * 64, "bytes": size, "stage": id}
            | {"precision": "fp32", "metrics": {}}
            for id, size in (("baseline", 1000), ("export", 250))
        ],
        "measurements": [
            row("baseline", 2.0, None),
            row("export", 1.0, {"value": 2.0, "low": 1.9, "high": 2.1}),
        ],
        "gates": [{"metric": "latency_p50", "limit": 3.0, "value": 2.0, "verdict": "fail", "unit": "x"}],
        "best": {"artifact": "export", "runtime": "onnxruntime"},
        "environment": {},
    }


def used_s() -> float:
    """Processor time of the commands that ended: how busy the machine is does not come into it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(run_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "report", str(run_dir)], capture_output=True, text=True, timeout=60
    )


def test_renders_again_and_prints_the_summary(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(example()), encoding="utf-8")
    before = used_s()
    ended = report(tmp_path)
    assert used_s() - before < 4
    assert ended.returncode == 0, ended.stderr
    assert "heavy: []" in ended.stderr
    assert ended.stdout.startswith(
        "Failed: edge\n  latency_p50 failed: export is 2.00× as fast as the baseline (1.00 ms against 2.00 ms)"
    )
    assert f"report: {tmp_path / 'report.html'}" in ended.stdout
    for name in ("report.html", "summary.md", "junit.xml"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; expected the directory of a finished run"),
        ("{}", "cannot be read as a report: not a report of this version: schema: Field required"),
        ('{"schema": 1,', "cannot be read as a report: Expecting property name"),
    ],
)
def test_no_report_or_a_broken_one_is_exit_code_2(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
    ended = report(tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "report.html").exists()
