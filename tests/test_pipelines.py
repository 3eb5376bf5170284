"""Every file in pipelines/ that brings its data runs as it is and passes its own gates.

Those that need the user's data run at toy size in tests/pipelines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploycompress.config.reader import read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = {"digits"}  # data that come with a library
PIPELINES = [p for p in sorted((ROOT / "pipelines").glob("*.yaml")) if read(p).data.source in EMBEDDED]


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: p.stem)
def test_it_runs_and_passes_its_gates(pipeline, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "deploycompress", "run", str(pipeline), "--out", str(tmp_path / "run")],
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
    if pipeline.stem == "quickstart":
        _is_what_the_readme_says(report)


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
