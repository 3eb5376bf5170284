"""A sample of benchmarks/reliability: killed, damaged, at once, signalled; nothing is lost, made twice or left.

One process does it all, with runs that are forked from one warm server: the whole enumerations take an hour.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("reliability")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "sample.py"), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_what_was_killed_at_an_operation_or_at_any_time_goes_on_to_the_same_digests(found):
    crash = found["crash"]
    assert crash["failures"] == []
    (_, tried, resumed), (_, kills, after) = crash["figures"]
    assert tried == resumed == 4 and kills == after == 3
    assert crash["random"]["finished_the_same"] >= 1
    assert sum(step["points"] for step in crash["steps"].values()) > 40, "each step has its operations"


def test_every_damage_in_the_store_is_found_and_made_good(found):
    corruption = found["corruption"]
    assert corruption["failures"] == []
    (_, tried, seen), (_, runs, made_again) = corruption["figures"]
    assert tried == seen > 150 and runs == made_again == 1
    assert min(of["tried"] for of in corruption["by_way"].values()) >= 5


def test_runs_at_once_make_each_step_once_though_some_are_killed(found):
    (only,) = found["concurrency"]["rounds"]
    assert only["problems"] == [] and only["made_twice"] == 0
    assert only["ended_well"] >= 1 and only["killed"] + only["ended_well"] == 3


def test_a_signal_ends_a_run_in_time_and_leaves_nothing_half_done(found):
    assert [row["problems"] for row in found["signals"]["each"]] == [[], [], []]
    assert [row["phase"] for row in found["signals"]["each"]] == ["model", "train", "export"]


def test_a_step_that_the_kernel_ends_for_want_of_memory(found):
    refusals = found["refusals"]
    if refusals["skipped"]:
        pytest.skip(refusals["skipped"]["killed by the kernel"])
    (only,) = refusals["each"]
    assert only["problems"] == [] and only["exit_code"] == 4
    assert "the kernel does this when memory runs out" in only["said"]
