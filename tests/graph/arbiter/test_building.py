"""Builds in processes of their own, with real crashes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploycompress.errors import StageFailed
from deploycompress.graph.arbiter.building import build_apart, compiler_of, save_feeds
from deploycompress.graph.compilers.recipe import Recipe
from deploycompress.registry import COMPILERS

FEEDS = [{"image": np.random.default_rng(n).normal(size=(8, 3, 12, 12)).astype(np.float32)} for n in range(4)]


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    save_feeds(FEEDS, tmp_path / "calibration")
    return tmp_path / "calibration"


@pytest.mark.parametrize(
    ("recipe", "kind", "made"),
    [
        (Recipe("onnxruntime", "fp32"), "onnx", "model.onnx"),
        (Recipe("onnxruntime", "fp16"), "onnx", "model.onnx"),
        (Recipe("onnxruntime", "int8", "s8s8"), "onnx", "model.onnx"),
        (Recipe("onnxruntime", "int8", "dynamic"), "onnx", "model.onnx"),
        (Recipe("onnxruntime", "int8", "dynamic_reduced"), "onnx", "model.onnx"),
        (Recipe("openvino", "fp32"), "openvino", "model"),
        (Recipe("openvino", "int8"), "openvino", "model"),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else "",
)
def test_every_recipe_makes_an_artefact(
    recipe: Recipe, kind: str, made: str, exported: Path, calibration: Path, tmp_path: Path
) -> None:
    built = build_apart(recipe, exported, tmp_path / "place", calibration, 120)
    assert (built.kind, built.path.name) == (kind, made)
    if kind == "openvino":
        assert {p.name for p in built.path.iterdir()} == {"model.xml", "model.bin"}
        return
    model = onnx.load(built.path)
    types = {t.data_type for t in model.graph.initializer}
    expected = {
        "fp32": onnx.TensorProto.FLOAT,
        "fp16": onnx.TensorProto.FLOAT16,
        "int8": onnx.TensorProto.INT8,
    }
    assert expected[recipe.precision] in types


def test_a_build_that_crashes_or_does_not_end_is_an_error_and_not_the_end(
    exported: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wild_compiler.py").write_text(
        textwrap.dedent(
            """
            import os, signal, time
            class Wild:
                def missing(self):
                    return None
                def recipes(self, provider, facts, operators):
                    return ()
                def build(self, recipe, source, folder, calibration):
                    if recipe.scheme == "crash":
                        os.kill(os.getpid(), signal.SIGSEGV)
                    if recipe.scheme == "raise":
                        raise ValueError("no such kernel")
                    time.sleep(60)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMPILERS._entries, "wild", "wild_compiler:Wild")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "from deploycompress.registry import COMPILERS; COMPILERS._entries['wild'] = 'wild_compiler:Wild'"
    (tmp_path / "sitecustomize.py").write_text(code)
    assert compiler_of("wild").missing() is None
    for scheme, reason in (
        ("crash", "ended by SIGSEGV"),
        ("raise", "ValueError: no such kernel"),
        ("hang", "took more than"),
    ):
        with pytest.raises(StageFailed, match=reason):
            limit = 3 if scheme == "hang" else 60
            build_apart(Recipe("wild", "int8", scheme), exported, tmp_path / scheme, calibration, limit)


def test_a_runtime_without_a_compiler_runs_the_file_as_it_is(
    exported: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "own_runtime.py").write_text("class Own:\n    accepts = frozenset({'onnx'})\n")
    monkeypatch.syspath_prepend(tmp_path)
    compiler = compiler_of("own_runtime:Own")
    assert [r.name for r in compiler.recipes("cpu", {}, {})] == ["own_runtime:Own/fp32"]
    (tmp_path / "out").mkdir()
    built = compiler.build(Recipe("own_runtime:Own", "fp32"), exported, tmp_path / "out", [])
    assert built.path.read_bytes() == exported.read_bytes()


def test_a_process_that_quantizes_does_not_wait_for_torch() -> None:
    """Its import takes two seconds and more, of each candidate."""
    code = "import sys, deploycompress.graph.quantization, deploycompress.graph.half; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
