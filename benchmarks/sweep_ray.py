"""Does every trial of a sweep on a Ray cluster end, with the same result, where one of two nodes is killed in the middle?

A local cluster (ray.cluster_utils) of a head without processors and two nodes of one each. The same six trials run on it
twice, each time with an empty store: once left alone, and once with a node killed by SIGKILL, with all that runs on it,
while it is inside a trial that has begun to prune. Compared are the files of each trial byte by byte, and its accuracy;
latencies are measured anew and differ. Training has one thread.

    python benchmarks/sweep_ray.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from deploycompress.artifact import read_json, write_json, write_text
from deploycompress.config.yaml_text import to_yaml
from deploycompress.measure.environment import environment

RESULTS = Path(__file__).parent / "results"
BASE = """
name: nodes
model:
  build: deploycompress.examples.resnet:build
  args: {width: 16, depth: 8}
  inputs: {image: {shape: [batch, 1, 16, 16]}}
task: classification
data: {source: digits, image_size: 16, batch_size: 32}
stages:
  - train: {epochs: 3, lr: 5e-3}
  - prune: {target: {macs: 50%}, criterion: taylor, allocation: uniform}
  - distill: {epochs: 2, lr: 8e-3}
  - export
  - benchmark: {mode: quick}
gates:
  artifact_size: {max_ratio: 90%}
"""
MATRIX = {"prune.target.macs": ["60%", "40%", "20%"], "distill.temperature": [2, 6]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "sweep_ray.json")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "pipeline.yaml", BASE.lstrip())
        write_text(
            folder / "sweep.yaml",
            to_yaml({"name": "nodes", "pipeline": "pipeline.yaml", "matrix": MATRIX}),
        )
        undisturbed = run(folder, "undisturbed", kill=False)
        disturbed = run(folder, "disturbed", kill=True)
    rows = [
        {
            "values": values,
            "state": [undisturbed[key]["state"], disturbed[key]["state"]],
            "accuracy": [undisturbed[key]["accuracy"], disturbed[key]["accuracy"]],
            "same_files": undisturbed[key]["files"] == disturbed[key]["files"],
        }
        for key, values in ((str(t["values"]), t["values"]) for t in undisturbed["trials"])
    ]
    document = {
        "environment": environment(),
        "nodes": 2,
        "killed_after_s": disturbed["killed_after_s"],
        "seconds": [undisturbed["seconds"], disturbed["seconds"]],
        "ended": [sum(r["state"][i] == "complete" for r in rows) for i in (0, 1)],
        "equal": sum(r["same_files"] and r["accuracy"][0] == r["accuracy"][1] for r in rows),
        "trials": rows,
    }
    write_json(arguments.output, document)
    print(f"{document['ended']} of {len(rows)} ended, {document['equal']} with equal files and accuracy")


def run(folder: Path, name: str, kill: bool) -> dict[str, Any]:
    """One sweep on a fresh cluster: by the trial's values its state, accuracy and files."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    began = time.monotonic()
    words = ["sweep", str(folder / "sweep.yaml"), "--ray", cluster.address]
    words += ["--out", str(folder / name), "--store", str(folder / f"store-{name}")]
    sweep = subprocess.Popen([sys.executable, "-m", "deploycompress", *words])
    killed_after_s = None
    while kill and sweep.poll() is None:
        if any("prune: started" in log.read_text() for log in (folder / name).glob("trials/*/log.txt")):
            cluster.remove_node(nodes[0], allow_graceful=False)
            killed_after_s = round(time.monotonic() - began, 1)
            print(f"killed a node after {killed_after_s} s", flush=True)
            break
        time.sleep(0.2)
    code = sweep.wait()
    if code != 0 or kill != (killed_after_s is not None):
        raise SystemExit(f"the sweep ended with {code}")
    cluster.shutdown()
    report = read_json(folder / name / "report.json")
    found = {str(t["values"]): of_trial(folder / name, t) for t in report["trials"]}
    seconds = round(time.monotonic() - began, 1)
    return {**found, "trials": report["trials"], "seconds": seconds, "killed_after_s": killed_after_s}


def of_trial(folder: Path, trial: dict[str, Any]) -> dict[str, Any]:
    report = read_json(folder / trial["folder"] / "report.json")
    return {
        "state": trial["state"],
        "accuracy": trial["objectives"]["accuracy"]["value"],
        "files": {a["id"]: a["sha256"] for a in report["artifacts"]},
    }


if __name__ == "__main__":
    main()
