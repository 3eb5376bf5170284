"""``deploycompress schema`` prints JSON Schema and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

from deploycompress.registry import DATASETS, STAGES


def test_every_stage_and_data_source_is_in_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploycompress", "schema"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    schema = json.loads(done.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/draft/2020-12")
    stages = schema["$defs"]["step"]["anyOf"][1]["properties"]
    assert list(stages) == list(STAGES)
    assert all(stage["description"] for stage in stages.values())
    assert all({"id", "from", "timeout"} <= set(stage["properties"]) for stage in stages.values())
    sources = [s["properties"]["source"].get("const") for s in schema["properties"]["data"]["anyOf"]]
    assert sources == [*DATASETS, None]  # the last is a user's own
