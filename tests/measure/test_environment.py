"""The machine's fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from deploycompress.measure import environment as module
from deploycompress.measure.environment import environment, machine


def test_is_json_and_names_this_machine() -> None:
    found = environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert found["machine"]["cpu"]
    assert set(found["libraries"]) >= {"torch", "onnxruntime", "numpy"}
    if found["machine"]["architecture"] == "x86_64":
        assert "sse4_2" in found["machine"]["flags"]


def test_another_processor_that_plays_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under qemu's user mode: the processor is of one kind, and /proc/cpuinfo of another."""
    if machine()["architecture"] != "x86_64":
        pytest.skip("the machine is no x86, whose /proc/cpuinfo would show")
    assert machine()["emulated"] is False
    real, flags = module.cpu_model(), module.cpu_flags()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    found = machine()
    assert found["emulated"] is True and found["cpu"] == "riscv64, emulated"
    assert found["flags"] == [] and real and flags  # none of them are the played one's


def test_imports_no_framework() -> None:
    code = (
        "import sys; from deploycompress.measure.environment import environment; environment();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
