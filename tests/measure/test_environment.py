"""The machine's fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from deploycompress.measure.environment import environment


def test_is_json_and_names_this_machine() -> None:
    found = environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert found["machine"]["cpu"]
    assert set(found["libraries"]) >= {"torch", "onnxruntime", "numpy"}
    if found["machine"]["architecture"] == "x86_64":
        assert "sse4_2" in found["machine"]["flags"]


def test_imports_no_framework() -> None:
    code = (
        "import sys; from deploycompress.measure.environment import environment; environment();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
