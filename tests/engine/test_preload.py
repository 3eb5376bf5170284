"""What a step finds done in the process that it is forked from."""

from __future__ import annotations

import json
import subprocess
import sys

STEP = """
import gc, json, sys
import deploycompress.engine.preload
import torch
had, frozen = set(sys.modules), gc.get_freeze_count()
example = (torch.zeros(2, 3),)
torch.onnx.export(torch.nn.Linear(3, 2).eval(), example, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
late = [name for name in sys.modules if name not in had]
print(json.dumps({"frozen": frozen, "collects": gc.isenabled(), "late": late}))
"""


def test_a_step_neither_imports_the_exporter_nor_looks_through_the_objects_of_the_libraries() -> None:
    ended = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["collects"]  # what the step itself makes
    assert found["frozen"] > 100_000
    assert len(found["late"]) < 20, found["late"]  # 28 where the list lacks seven of them
