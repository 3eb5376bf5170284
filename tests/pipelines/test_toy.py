"""The pipelines that need the user's data, at toy size, on data that the tests make."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from deploycompress.config.reader import read
from deploycompress.errors import ConfigError
from deploycompress.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]


def tones(folder: Path) -> Path:
    """Digits 0 to 3 by one speaker, takes 0 to 39: a tone of its own for each digit, in noise."""
    rng = np.random.default_rng(0)
    for digit in range(4):
        for take in range(40):
            time = np.arange(3000 + 100 * (take % 20)) / 8000
            sound = np.sin(2 * np.pi * (300 + 400 * digit) * time) + 0.1 * rng.normal(size=len(time))
            with wave.open(str(folder / f"{digit}_ann_{take}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes((8000 * sound).astype("<i2").tobytes())
    return folder


def reviews(folder: Path) -> Path:
    """Sentences whose class is in one word of theirs."""
    rng = np.random.default_rng(0)
    words = ["the", "film", "is", "a", "story", "of", "people", "and", "places"]
    for name, count in (("train", 96), ("dev", 24), ("test", 24)):
        lines = []
        for i in range(count):
            sentence = list(rng.choice(words, size=rng.integers(3, 12)))
            sentence.insert(int(rng.integers(len(sentence))), ("bad", "good")[i % 2])
            lines.append(f"{' '.join(sentence)}\t{i % 2}\n")
        (folder / f"{name}.tsv").write_text("".join(lines))
    return folder


SMALL = ["data.batch_size=8", "train.epochs=8", "train.lr=1e-2", "distill.epochs=2", "prune.target.macs=70%"]
# So few samples judge nothing, and a small network cannot lose much: the steps and their checks are tested.
LOOSE = ["gates.accuracy.max_drop=100 pp", "gates.latency_p50.min_speedup=0.01"]
TOYS = {
    "keyword-speech": (tones, ["model.args={width: 32, depth: 2}", "gates.artifact_size.max_ratio=100%"]),
    "keyword-speech-recurrent": (
        tones,
        ["model.args={width: 16, hidden: 16}", "gates.artifact_size.max_ratio=100%"],
    ),
    "sentiment": (reviews, ["model.args={vector: 16, width: 32}"]),
}


@pytest.mark.parametrize("name", TOYS)
def test_it_runs_at_toy_size(name, tmp_path):
    make, sizes = TOYS[name]
    data = tmp_path / "data"
    data.mkdir()
    changes = [f"data.root={make(data)}", *sizes, *SMALL, *LOOSE]
    command = [
        "run",
        str(ROOT / "pipelines" / f"{name}.yaml"),
        "--out",
        str(tmp_path / "run"),
        "--no-rehearsal",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deploycompress",
            *command,
            *(w for change in changes for w in ("--set", change)),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    steps = {step["name"]: step for step in report["stages"]}
    assert {"train", "prune", "distill", "export", "quantize", "benchmark"} <= steps.keys()
    assert steps["train"]["metrics"]["val_accuracy"] > 0.9
    shipped = next(a for a in report["artifacts"] if a["id"] == report["best"]["artifact"])
    assert shipped["bytes"] > 0


@pytest.mark.parametrize("name", TOYS)
def test_without_data_it_says_what_it_expects(name):
    source = read(ROOT / "pipelines" / f"{name}.yaml").data
    with pytest.raises(ConfigError, match=r"needs data\.root: "):
        DATASETS.load(source.source)(source).files()
