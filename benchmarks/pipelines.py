"""Runs a shipped pipeline and keeps its figures: ``python benchmarks/pipelines.py quickstart``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# With --data: mnist-cnn runs on digits else, and resnet56-cifar10 wants an accelerator for a day.
CHANGES = {
    "mnist-cnn": ("data.source=mnist", "train.epochs=3", "distill.epochs=3"),
    "resnet56-cifar10": (
        "data.source=image_folder", "model.args.depth=20", "train.epochs=5", "distill.epochs=5",
    ),
}  # fmt: skip
KEPT = ("name", "verdict", "seconds", "gates", "best", "measurements", "environment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", help="the name of a file in pipelines/")
    parser.add_argument("--data", type=Path, help="data.root; what else changes with it is in the result")
    arguments = parser.parse_args()
    changes = CHANGES.get(arguments.pipeline, ()) if arguments.data else ()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "deploycompress",
            "run",
            str(ROOT / "pipelines" / f"{arguments.pipeline}.yaml"),
        ]
        places = [f"data.root={arguments.data.resolve()}"] if arguments.data else []
        command += [word for change in (*places, *changes) for word in ("--set", change)]
        # A store of its own: every step is made, so that the time is that of a first run.
        done = subprocess.run([*command, "--out", f"{folder}/run", "--store", f"{folder}/store"], check=False)
        report = json.loads(Path(folder, "run", "report.json").read_text())
    figures = {key: report[key] for key in KEPT} | {
        "data": report["data"]["source"],
        "changes": list(changes),
        "artifacts": [{k: a[k] for k in ("id", "kind", "precision", "bytes")} for a in report["artifacts"]],
        "stages": [{k: s[k] for k in ("name", "seconds", "metrics")} for s in report["stages"]],
    }
    result = ROOT / "benchmarks" / "results" / f"{arguments.pipeline}.json"
    result.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(f"exit code {done.returncode}; figures in {result.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
