"""Real runs whose training is cut short: by kill -9, by a signal, and in one of two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

MODEL = '''
"""A network without batch statistics."""
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.0), nn.Linear(24, 10))
'''

PIPELINE = """
name: trained
seed: 1
model:
  build: model.py:build
  inputs: {image: {shape: [batch, 1, 8, 8]}}
task: classification
data: {source: digits, image_size: 8, batch_size: 32, calibration: 32, augment: none}
stages:
  - train: {epochs: 30, lr: 0.01, checkpoint_every: 3 steps, clip: 1.0}
gates: {}
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "pipeline.yaml").write_text(PIPELINE.lstrip())
    return folder / "pipeline.yaml"


def start(pipeline: Path, out: str, *more: str) -> subprocess.Popen:
    """A run of its own, in a process group of its own."""
    command = [sys.executable, "-m", "deploycompress", "run", str(pipeline), "--no-rehearsal"]
    places = ["--out", str(pipeline.parent / out), "--store", str(pipeline.parent / f"{out}-store")]
    return subprocess.Popen(
        [*command, *places, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def read_until(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"it ended before {words!r}")


def weights(pipeline: Path, out: str) -> dict[str, torch.Tensor]:
    return load_file(pipeline.parent / out / "01-train" / "model" / "model.safetensors")


def checkpoints(pipeline: Path, out: str) -> list[Path]:
    return list((pipeline.parent / f"{out}-store" / "checkpoints").rglob("state.json"))


def ranks_of(pipeline: Path, out: str) -> dict[int, int]:
    """Rank -> process, of the processes that train together in this run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode()
            variables = dict(
                v.partition("=")[::2] for v in (folder / "environ").read_bytes().decode().split("\0")
            )
        except (OSError, UnicodeDecodeError):
            continue
        if str(pipeline.parent / out) in command and "RANK" in variables and "engine.worker" in command:
            found[int(variables["RANK"])] = int(folder.name)
    return found


def test_killed_and_interrupted_it_ends_bit_identical_and_leaves_no_checkpoint(pipeline):
    whole = start(pipeline, "whole")
    killed = start(pipeline, "cut")
    read_until(killed, "01-train: epoch 4")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert checkpoints(pipeline, "cut"), "nothing was kept"

    stopped = start(pipeline, "cut")
    read_until(stopped, "01-train: epoch 12")
    sent = time.monotonic()
    stopped.send_signal(signal.SIGINT)
    finished(stopped, code=130)
    assert time.monotonic() - sent < 7.5

    # How often a checkpoint is made does not change what training gives: it goes on.
    output = finished(start(pipeline, "cut", "--set", "train.checkpoint_every=10 min"))
    assert "training goes on after step" in output and "epoch 5/30" not in output
    finished(whole)
    one, other = weights(pipeline, "whole"), weights(pipeline, "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert checkpoints(pipeline, "cut") == checkpoints(pipeline, "whole") == []


def test_two_processes_give_what_one_gives_also_after_one_was_killed(pipeline):
    two = ("--set", "train.launch.processes=2")
    broken = start(pipeline, "two", *two)
    one = start(pipeline, "one")
    read_until(broken, "01-train: epoch 4")
    ranks = ranks_of(pipeline, "two")
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    output = finished(broken, code=4)
    assert "process 2 of 2 was ended by SIGKILL" in output and "run the same command again" in output
    assert ranks_of(pipeline, "two") == {}
    output = finished(start(pipeline, "two", *two))
    assert "training goes on after step" in output and "epoch 3/30" not in output
    finished(one)
    single, shared = weights(pipeline, "one"), weights(pipeline, "two")
    assert max(float((single[name] - shared[name]).abs().max()) for name in single) < 1e-5
