"""The test split is read by the benchmark alone, after every other read: no choice can depend on it."""

from __future__ import annotations

import os
import subprocess
import sys

DATA = '''
import os
import sys

import torch

TOLD = set()


class Told(torch.utils.data.Dataset):
    """Writes down, once a process, which stage reads which split."""

    def __init__(self, split, count):
        self.split = split
        generator = torch.Generator().manual_seed(count)
        self.targets = [i % 10 for i in range(count)]
        self.images = torch.randn(count, 1, 8, 8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        frame, stage = sys._getframe(), "none"
        while frame is not None:
            place, name = os.path.split(frame.f_code.co_filename)
            if os.path.basename(place) == "stages":
                stage = name.removesuffix(".py")
            frame = frame.f_back
        if (self.split, stage) not in TOLD:
            TOLD.add((self.split, stage))
            with open(os.environ["TOLD"], "a") as stream:
                stream.write(f"{self.split} {stage}\\n")
        return self.images[index], self.targets[index]


def load():
    return {"train": Told("train", 120), "val": Told("val", 40), "test": Told("test", 50)}
'''


def test_no_stage_but_the_benchmark_reads_the_test_split(tiny):
    (tiny.parent / "own.py").write_text(DATA)
    text = tiny.read_text().replace(
        "{source: digits, image_size: 8, batch_size: 128, calibration: 32}",
        "{source: own.py:load, batch_size: 64, calibration: 32}",
    )
    tiny.write_text(
        text.replace("artifact_size: {max: 1 MB}", "accuracy: {max_drop: 100 pp, on_inconclusive: warn}")
    )
    told = tiny.parent / "told.txt"
    done = subprocess.run(
        [sys.executable, "-m", "deploycompress", "run", str(tiny), "--no-rehearsal"],
        capture_output=True,
        text=True,
        cwd=tiny.parent,
        env=os.environ | {"TOLD": str(told)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reads = [line.split() for line in told.read_text().splitlines()]
    stages = {split: {stage for kind, stage in reads if kind == split} for split in ("train", "val", "test")}
    assert stages["test"] == {"benchmark"}
    assert {"model", "train", "distill"} <= stages["train"] and {"train", "prune", "quantize"} <= stages[
        "val"
    ]
    first = next(i for i, (split, _) in enumerate(reads) if split == "test")
    assert all(stage == "benchmark" for _, stage in reads[first:])
