"""Real runs whose training is cut short: by kill -9, and in one of two processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deploycompress.contracts import Event
from deploycompress.engine.pipeline import run as run_pipeline

pytestmark = pytest.mark.usefixtures("warm_server")

MODEL = '''
"""A network without batch statistics."""
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
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
  - train: {epochs: 12, lr: 0.01, checkpoint_every: 20 steps, clip: 1.0}
gates: {}
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "pipeline.yaml").write_text(PIPELINE.lstrip())
    return folder / "pipeline.yaml"


class Said:
    """A listener that keeps every sentence, and does something at each event."""

    def __init__(self, at: Callable[[Event], None]) -> None:
        self.text, self.at = "", at

    def planned(self, run_dir, steps) -> None: ...
    def joined(self, step, planned) -> None: ...
    def started(self, step_id) -> None: ...

    def event(self, event) -> None:
        self.text += event.message + "\n"
        self.at(event)

    def finished(self, record) -> None:
        self.text += (record.error or {"message": ""})["message"] + "\n"


def run_here(pipeline: Path, out: str, *overrides: str, at=lambda event: None) -> tuple[int, str]:
    """The exit code and what was said; in this process, so that all such runs share one fork server."""
    folder, listener = pipeline.parent, Said(at)
    options = {"out": folder / out, "store": folder / f"{out}-store", "rehearsal": False}
    report = run_pipeline(pipeline, listener, overrides=overrides, **options)
    return report["exit_code"], listener.text


def weights(pipeline: Path, out: str) -> dict[str, torch.Tensor]:
    return load_file(pipeline.parent / out / "01-train" / "model" / "model.safetensors")


def checkpoints(pipeline: Path, out: str) -> list[Path]:
    return list((pipeline.parent / f"{out}-store" / "checkpoints").rglob("state.json"))


def ranks_of(run_dir: Path) -> dict[int, int]:
    """Rank -> process, of the processes that train together in this run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode()
            lines = (folder / "environ").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        variables = dict(line.partition("=")[::2] for line in lines)
        if "engine.worker" in command and str(run_dir) in command and "RANK" in variables:
            found[int(variables["RANK"])] = int(folder.name)
    return found


def test_after_kill_9_it_goes_on_to_the_same_weights_and_leaves_no_checkpoint(pipeline):
    command = [sys.executable, "-m", "deploycompress", "run", str(pipeline), "--no-rehearsal"]
    places = ["--out", str(pipeline.parent / "cut"), "--store", str(pipeline.parent / "cut-store")]
    with subprocess.Popen(
        [*command, *places], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as killed:
        assert killed.stdout is not None and any("01-train: epoch 4" in line for line in killed.stdout)
        os.killpg(killed.pid, signal.SIGKILL)
    assert checkpoints(pipeline, "cut"), "nothing was kept"

    # How often a checkpoint is made does not change what training gives: it goes on.
    code, said = run_here(pipeline, "cut", "train.checkpoint_every=10 min")
    assert code == 0 and "training goes on after step" in said and "epoch 3/12" not in said
    assert run_here(pipeline, "whole")[0] == 0
    one, other = weights(pipeline, "whole"), weights(pipeline, "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert checkpoints(pipeline, "cut") == checkpoints(pipeline, "whole") == []


NORMALISED = """
from torch import nn


def build(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))
"""
STUDENT = """stages:
  - train: {epochs: 4, lr: 0.02}
  - distill: {epochs: 4, lr: 0.02, ema: 0.9, student: {build: model.py:build, args: {width: 12}}}
gates: {}
"""


def test_two_processes_distil_a_normalised_network_as_well_as_one(pipeline):
    """Each has batch statistics of its own share, so that accuracy is compared, and not weights."""
    (pipeline.parent / "model.py").write_text(NORMALISED)
    pipeline.write_text(PIPELINE[: PIPELINE.index("stages:")].lstrip() + STUDENT)
    found = {}
    for name, more in (("one", ()), ("two", ("train.launch.processes=2", "distill.launch.processes=2"))):
        code, said = run_here(pipeline, name, *more)
        assert code == 0, said
        manifest = json.loads((pipeline.parent / name / "02-distill" / "manifest.json").read_text())
        found[name] = manifest["metrics"]
    accuracy = {name: metrics["val_accuracy"] for name, metrics in found.items()}
    assert accuracy["one"] > found["one"]["val_accuracy_before"] + 0.5, "it has learned"
    assert abs(accuracy["one"] - accuracy["two"]) < 0.05, accuracy


READ = """
import os
from pathlib import Path

import numpy as np

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(48, 1, 8, 8)).astype(np.float32), np.arange(48) % 10


class Rows:
    def __init__(self, name):
        self.name = name

    def __len__(self):
        return len(X)

    def batch(self, indices, rng):
        if "RANK" in os.environ:
            with (Path(__file__).parent / "read.txt").open("a") as log:
                log.write(f"{self.name} {os.environ['RANK']} {len(indices)}\\n")
        return X[indices], Y[indices]


def load():
    return {name: Rows(name) for name in ("train", "val")}
"""


def test_each_of_two_processes_reads_its_share_and_one_validates(pipeline):
    folder = pipeline.parent
    (folder / "model.py").write_text(NORMALISED)
    (folder / "rows.py").write_text(READ)
    digits = "{source: digits, image_size: 8, batch_size: 32, calibration: 32, augment: none}"
    assert digits in PIPELINE
    head = PIPELINE[: PIPELINE.index("stages:")].lstrip()
    head = head.replace(digits, "{source: rows.py:load, batch_size: 16, calibration: 16}")
    pipeline.write_text(head + STUDENT.replace("epochs: 4", "epochs: 1"))
    code, said = run_here(pipeline, "out", "train.launch.processes=2", "distill.launch.processes=2")
    assert code == 0, said
    read = [line.split() for line in (folder / "read.txt").read_text().splitlines()]
    assert {rank for name, rank, _ in read if name == "val"} == {"0"}
    steps = [(rank, size) for name, rank, size in read if name == "train" and size == "8"]
    assert steps.count(("0", "8")) == steps.count(("1", "8")) == 2 * 3, "two stages with three batches each"
    whole = [rank for name, rank, size in read if name == "train" and size == "16"]
    assert set(whole) <= {"0", "1"} and whole.count("1") <= 2, (
        "beside the first batch, statistics are one's task"
    )
    pipeline.write_text(head + "stages: [{train: {epochs: 1}}]\ngates: {}\n")
    code, said = run_here(pipeline, "idle", "train.launch.processes=2", "data.batch_size=3")
    assert code == 0 and "a batch of 3 samples keeps 1 of 2 processes busy" in said, said


def test_two_processes_give_what_one_gives_also_after_one_was_killed(pipeline):
    two, killed = "train.launch.processes=2", []

    def kill_one(event: Event) -> None:
        if event.message == "epoch 4/12":
            ranks = ranks_of(pipeline.parent / "two")
            killed.append(sorted(ranks))
            os.kill(ranks[1], signal.SIGKILL)

    code, said = run_here(pipeline, "two", two, at=kill_one)
    assert code == 4 and killed == [[0, 1]]
    assert "process 2 of 2 was ended by SIGKILL: run the same command again to go on" in said
    assert ranks_of(pipeline.parent / "two") == {}
    code, said = run_here(pipeline, "two", two)
    assert code == 0 and "training goes on after step" in said and "epoch 3/12" not in said
    assert run_here(pipeline, "one")[0] == 0
    single, shared = weights(pipeline, "one"), weights(pipeline, "two")
    assert max(float((single[name] - shared[name]).abs().max()) for name in single) < 1e-5


def test_two_machines_give_what_one_gives(pipeline):
    """The same command on each, with a store of its own; here both are this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deploycompress", "run", str(pipeline), "--no-rehearsal"]
    command += ["--set", "train.launch.nodes=2", "--set", f"train.launch.rendezvous=127.0.0.1:{port}"]
    local = {"GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [*command, "--out", str(pipeline.parent / out), "--store", str(pipeline.parent / f"{out}-store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **local},
        )
        for out in ("first", "second")
    ]
    for process in started:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    assert run_here(pipeline, "one")[0] == 0
    single = weights(pipeline, "one")
    for out in ("first", "second"):
        shared = weights(pipeline, out)
        assert max(float((single[name] - shared[name]).abs().max()) for name in single) < 1e-5
