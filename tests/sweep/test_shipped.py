"""The sweeps in pipelines/, and the one that the README explains, are read without a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploycompress.sweep.reader import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", sorted((ROOT / "pipelines").glob("sweep-*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_sweep_is_read(file):
    sweep = read(file)
    assert sweep.config.name == file.stem and sweep.axes and sweep.objectives


def test_the_readmes_sweep_is_read(tmp_path, monkeypatch):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(next(block for block in blocks if "search:" in block))
    (tmp_path / "mobilenet.pth").touch()
    monkeypatch.chdir(ROOT / "pipelines")
    sweep = read(tmp_path / "sweep.yaml")
    assert [axis.path for axis in sweep.axes] == [
        "prune.target.macs",
        "quantize.scheme",
        "distill.temperature",
    ]
    assert sweep.config.resources.device == "orin" and sweep.pruning.step == "distill"
