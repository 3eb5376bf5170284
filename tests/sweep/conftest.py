"""A sweep over the tiny pipeline, as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SWEEP = """
name: many
pipeline: pipeline.yaml
search:
  prune.target.macs: [80%, 60%]
  distill.temperature: {low: 1.0, high: 8.0}
objectives: {accuracy: maximise, latency_p50: minimise}
budget: 4 trials
"""


@pytest.fixture
def sweep_file(tiny: Path) -> Callable[..., Path]:
    """Writes sweep.yaml beside the tiny pipeline: the one above with parts of its text replaced."""

    def write(*replaced: tuple[str, str], text: str = SWEEP) -> Path:
        for old, new in replaced:
            assert old in text, old
            text = text.replace(old, new)
        path = tiny.parent / "sweep.yaml"
        path.write_text(text.lstrip())
        return path

    return write
