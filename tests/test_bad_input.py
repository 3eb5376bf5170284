"""Every bad input of a real run: the sentence, the exit code, and nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deploycompress.registry import RUNTIMES

DATA = """
import numpy as np
import torch


class Samples(torch.utils.data.Dataset):
    def __init__(self, count, labels=10, size=8, value=None):
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randn(count, 1, size, size, generator=generator)
        if value is not None:
            self.images[count // 2, 0, 0, 0] = value
        self.labels = torch.arange(count) % labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


def of(**options):
    return {"train": Samples(128, **options), "val": Samples(32, **options), "test": Samples(32, **options)}


def good():
    return of()


def empty():
    return {"train": Samples(0), "val": Samples(0), "test": Samples(0)}


def labels_out_of_range():
    return of(labels=11)


def wrong_shape():
    return of(size=9)


def not_a_number():
    return of(value=float("nan"))
"""

BROKEN = """
from model import build


def failing():
    module = build()
    module.append(__import__("torch").nn.Linear(7, 3))
    return module
"""

STAGES = """stages:
  - train: {epochs: 1, lr: 0.01}
  - prune: {target: {macs: 60%}, criterion: magnitude}
  - export
  - benchmark
"""


@pytest.fixture
def project(tiny: Path) -> Path:
    text = tiny.read_text()
    text = text[: text.index("stages:")] + STAGES + "gates:\n  artifact_size: {max: 1 MB}\n"
    text = text.replace(
        "{source: digits, image_size: 8, batch_size: 128, calibration: 32}",
        "{source: data.py:good, batch_size: 32}",
    )
    tiny.write_text(text)
    (tiny.parent / "data.py").write_text(DATA)
    (tiny.parent / "broken.py").write_text(BROKEN)
    return tiny


@pytest.fixture
def run(project: Path, command) -> Callable[..., tuple[int, str, Path]]:
    def ran(*more: str) -> tuple[int, str, Path]:
        out = project.parent / "run"
        code, said = command("run", project, "--out", out, *more, cwd=project.parent)
        assert "Traceback" not in said
        return code, said, out

    return ran


def saved_weights(pipeline: Path) -> None:
    """``sound.pt``, and ``weights.pt`` with a NaN in it."""
    from torch import nn

    sys.path.insert(0, str(pipeline.parent))
    try:
        module = __import__("model").build()
    finally:
        sys.path.pop(0)
        sys.modules.pop("model")
    assert isinstance(module, nn.Module)
    state = module.state_dict()
    torch.save(state, pipeline.parent / "sound.pt")
    state["3.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, pipeline.parent / "weights.pt")


def replace(old: str, new: str):
    def change(pipeline: Path) -> None:
        text = pipeline.read_text()
        assert old in text
        pipeline.write_text(text.replace(old, new, 1))

    return change


def weights(name: str):
    return replace("  inputs:", f"  weights: {name}\n  inputs:")


def both(*changes):
    def change(pipeline: Path) -> None:
        for each in changes:
            each(pipeline)

    return change


CASES = {
    "a misspelt key": (
        replace("epochs: 1", "epohcs: 1"),
        2,
        ["pipeline.yaml:", "epohcs", "did you mean", "epochs"],
    ),
    "a missing file": (weights("no-such.safetensors"), 2, ["no-such.safetensors", "does not exist"]),
    "a wrong shape": (replace("data.py:good", "data.py:wrong_shape"), 2, ["image", "9", "8", "expected"]),
    "labels out of range": (replace("data.py:good", "data.py:labels_out_of_range"), 2, ["10", "label"]),
    "an empty data set": (replace("data.py:good", "data.py:empty"), 2, ["train", "empty"]),
    "NaN in the weights": (both(saved_weights, weights("weights.pt")), 2, ["3.weight", "NaN"]),
    "a forward that fails": (replace("model.py:build", "broken.py:failing"), 2, ["forward", "[32, 1, 8, 8]"]),
    "NaN in the data": (replace("data.py:good", "data.py:not_a_number"), 2, ["NaN", "train"]),
    "NaN in the loss": (
        replace("lr: 0.01", "lr: 1e30"),
        4,
        ["not finite", "epoch 1", "batch", "gradient norm"],
    ),
    "a target out of reach": (
        replace("macs: 60%", "macs: 0.1%"),
        4,
        ["cannot be reached", "smallest", "on_unreachable"],
    ),
    "a gate that cannot hold": (replace("max: 1 MB", "max: 1 B"), 5, ["artifact_size", "fail"]),
    "a gate nothing measures": (
        replace("artifact_size: {max: 1 MB}", "metric:recall.77: {min: 50%}"),
        5,
        ["no recall.77 was measured"],
    ),
    "a metric that the task has not": (
        replace("artifact_size: {max: 1 MB}", "metric:mae: {max: 1}"),
        2,
        ["unknown metric of classification 'mae'", "accuracy, top5, precision"],
    ),
    "weights that are not what was expected": (
        both(
            saved_weights, weights("sound.pt"), replace("  inputs:", "  expect: {accuracy: 93.4%}\n  inputs:")
        ),
        2,
        ["model.expect", "on the validation split; expected 93.40 % within 1.00 pp and", "transform"],
    ),
}


@pytest.mark.skipif(RUNTIMES.load("tensorrt")().missing() is None, reason="TensorRT can run here")
def test_an_engine_that_must_be_built_and_cannot_is_missing_environment(project, run):
    replace("  - benchmark", "  - build_engine: {required: true, from: export}\n  - benchmark")(project)
    code, output, out = run()
    assert code == 3 and "build_engine" in output and "required: false" in output
    assert not list(out.glob("0*")), "found before the first step"


@pytest.mark.parametrize("case", CASES)
def test_a_clear_error_and_the_right_code(project, run, case):
    change, code, words = CASES[case]
    change(project)
    got, output, out = run(*(["--no-rehearsal"] if code == 5 or "loss" in case else []))
    assert got == code, output
    for word in words:
        assert word in output, output
    if code in (4, 5):
        assert (out / "report.json").exists() and (out / "01-train").exists() == (code == 5)
    assert not [p for p in out.rglob("*") if p.name.startswith(".") and p.name not in (".lock", ".jobs")]
    store = project.parent.parent / "store"
    assert not store.exists() or not list((store / "tmp").glob("*"))


def test_a_temporary_folder_with_too_long_a_path(project, tmp_path, monkeypatch):
    """The fork server's socket lies there."""
    folder = tmp_path / ("t" * 120)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    out = project.parent / "run"
    words = [sys.executable, "-m", "deploycompress", "run", str(project), "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=project.parent)
    code, said = done.returncode, done.stderr
    assert code == 3 and f"in the temporary folder {folder}: AF_UNIX path too long; set TMPDIR" in said
    assert not out.exists()
