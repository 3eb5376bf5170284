"""Running ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.execution import run_onnx


def test_one_result_for_each_feed(exported: Path, feed) -> None:
    one, three = run_onnx(exported, [feed(1), feed(3) | {"not asked for": np.ones(1)}])
    assert one["output"].shape == (1, 5) and three["output"].shape == (3, 5)


def test_what_goes_wrong_is_said(exported: Path, feed, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.onnx wants the inputs \['image'\], and was given \['x'\]"):
        run_onnx(exported, [{"x": feed(1)["image"]}])
    with pytest.raises(
        StageFailed, match=r"model.onnx does not run in ONNX Runtime: .*Invalid rank for input: image"
    ):
        run_onnx(exported, [{"image": np.ones((1, 3, 12), np.float32)}])
    (tmp_path / "broken.onnx").write_bytes(exported.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"broken.onnx is refused"):
        run_onnx(tmp_path / "broken.onnx", [feed(1)])
