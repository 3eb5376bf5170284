"""A sample of the zoo: the benchmark's script, which probes each model in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# Channel shuffles, which a ratio divides by zero; and a recurrent network, which stays whole where it has to.
SAMPLE = {"shufflenet_v2_x0_5": "torchvision-classification", "gru_classifier": "other"}


def test_a_sample_is_pruned_to_half_and_ships_and_is_not_run_twice(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    command = [sys.executable, str(ROOT / "benchmarks" / "zoo.py"), "--results", str(tmp_path)]
    for name, suite in SAMPLE.items():
        command += ["--suite", suite, "--model", name]

    def run() -> str:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 models, 0 of them finished" in run()
    records = json.loads((tmp_path / "zoo.json").read_text())["models"]
    assert {record["name"] for record in records.values()} == set(SAMPLE)
    for record in records.values():
        assert record["ok"] and record["reached"] and 0.45 < record["macs_ratio"] <= 0.5, record
        assert {"checkpoint", "export", "simplify"} <= set(record["hops"])
    whole = " ".join(records["other/gru_classifier"]["unpruned"])
    assert "GRU is not a kind of layer that is cut" in whole
    table = (tmp_path / "zoo.md").read_text()
    assert all(f"| {name} |" in table for name in SAMPLE)
    assert "2 models, 2 of them finished" in run()
