"""How long do 12 trials that share a trained model take, against 12 separate runs of the same pipelines?

A ResNet-8 of width 16 on the digits: 20 epochs of training, then pruned to four targets, recovered by two epochs of
distillation at three temperatures, exported and measured. Training is about half of a run, which is little.
Each separate run has an empty store of its own, as on a machine where nothing was run before; the sweep begins with an
empty one, too, and takes two trials at a time. The two take turns, two separate runs and then two trials of the sweep, so
that what else the machine does meets both: the sweep's command is given six times, with a budget that grows by two, and
goes on each time. Training has one thread in both, and each trial must end with the same files as its separate run,
byte by byte.

    python benchmarks/sweep_sharing.py
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deploycompress.artifact import read_json, write_json, write_text
from deploycompress.config.yaml_text import to_yaml
from deploycompress.measure.environment import environment

RESULTS = Path(__file__).parent / "results"
BASE = """
name: sharing
model:
  build: deploycompress.examples.resnet:build
  args: {width: 16, depth: 8}
  inputs: {image: {shape: [batch, 1, 32, 32]}}
task: classification
data: {source: digits, image_size: 32, batch_size: 32}
stages:
  - train: {epochs: 20, lr: 5e-3, weight_decay: 1e-2}
  - prune: {target: {macs: 50%}, criterion: taylor, allocation: uniform}
  - distill: {epochs: 2, lr: 8e-3, temperature: 4}
  - export
  - benchmark: {mode: quick}
"""
MATRIX = {"prune.target.macs": ["50%", "35%", "20%", "15%"], "distill.temperature": [2, 4, 6]}
AT_ONCE = 2
LIMIT = 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "sweep_sharing.json")
    arguments = parser.parse_args()
    combinations = list(itertools.product(*MATRIX.values()))
    with tempfile.TemporaryDirectory() as folder:
        rounds = compared(Path(folder), combinations)
        same = [equal(Path(folder), number) for number in range(len(combinations))]
        trials = read_json(Path(folder) / "sweep" / "report.json")["trials"]
    separate_s = sum(s for r in rounds for s in r["separate_s"])
    sweep_s = sum(r["sweep_s"] for r in rounds)
    document = {
        "environment": environment(),
        "matrix": MATRIX,
        "workers": AT_ONCE,
        "separate_s": round(separate_s, 1),
        "sweep_s": round(sweep_s, 1),
        "share": round(sweep_s / separate_s, 4),
        "limit": LIMIT,
        "trials_with_the_files_of_their_separate_run": sum(same),
        "trials_that_trained": sum("train" in t["made"] for t in trials),
        "rounds": rounds,
        "trials": [
            {k: t[k] for k in ("values", "seconds", "made", "reused", "saved_seconds")} for t in trials
        ],
    }
    write_json(arguments.output, document)
    write_text(arguments.output.with_suffix(".md"), markdown(document))
    print(f"{100 * document['share']:.1f} % ({sweep_s:.0f} s against {separate_s:.0f} s)")


def compared(folder: Path, combinations: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Seconds of each part, in the order in which they were run."""
    base = folder / "pipeline.yaml"
    write_text(base, BASE.lstrip())
    rounds = []
    for first in range(0, len(combinations), AT_ONCE):
        separate_s = []
        for number in range(first, first + AT_ONCE):
            values = dict(zip(MATRIX, combinations[number], strict=True))
            sets = [word for path, value in values.items() for word in ("--set", f"{path}={value}")]
            out = ["--out", str(folder / f"run{number}"), "--store", str(folder / f"store{number}")]
            separate_s.append(seconds(["run", str(base), *sets, *out, "-q"]))
        document = {
            "name": "sharing",
            "pipeline": str(base),
            "matrix": MATRIX,
            "budget": f"{first + AT_ONCE} trials",
        }
        write_text(folder / "sweep.yaml", to_yaml(document))
        out = ["--out", str(folder / "sweep"), "--store", str(folder / "store")]
        sweep_s = seconds(["sweep", str(folder / "sweep.yaml"), "--workers", str(AT_ONCE), *out])
        rounds.append({"separate_s": separate_s, "sweep_s": sweep_s, "load": os.getloadavg()[0]})
        print(rounds[-1], flush=True)
    return rounds


def seconds(words: list[str]) -> float:
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "deploycompress", *words], env=environment, capture_output=True, text=True
    )
    if done.returncode not in (0, 5):  # not every combination meets the quickstart's gates
        raise SystemExit(done.stdout + done.stderr)
    return round(time.monotonic() - began, 1)


def equal(folder: Path, number: int) -> bool:
    """Whether the trial made the same files as the separate run."""
    reports = [
        read_json(folder / place / "report.json") for place in (f"run{number}", f"sweep/trials/{number}")
    ]
    one, other = ({a["id"]: a["sha256"] for a in report["artifacts"]} for report in reports)
    return one == other


def markdown(document: dict[str, Any]) -> str:
    machine = document["environment"]["machine"]
    lines = [
        "# 12 trials that share a trained model, against 12 separate runs",
        "",
        f"{document['sweep_s']:.0f} s against {document['separate_s']:.0f} s: {100 * document['share']:.1f} % "
        f"(to reach: under {100 * document['limit']:.0f} %), on {machine['cpu']}, "
        f"{machine['cores']} cores, {document['workers']} trials at a time; the two "
        "took turns. The load is that of one minute, their own included. "
        f"A part of that is the second worker: the trials' own seconds add up to {sum(t['seconds'] for t in document['trials']):.0f}. "
        f"{document['trials_with_the_files_of_their_separate_run']} of {len(document['trials'])} trials ended with the same "
        f"files as their separate run, byte by byte, and {document['trials_that_trained']} trained.",
        "",
        "| trials | two separate runs (s) | two trials of the sweep (s) | load |",
        "|---|---|---|---|",
    ]
    for number, row in enumerate(document["rounds"]):
        separate = " + ".join(f"{s:.0f}" for s in row["separate_s"])
        lines.append(
            f"| {2 * number}, {2 * number + 1} | {separate} | {row['sweep_s']:.0f} | {row['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
