"""Does our p50 agree with OpenVINO's own benchmark_app on the same file, within 5 %?

Untrained networks of torchvision are exported at batch size 1. Each file is measured by `deploycompress benchmark` in
OpenVINO and by benchmark_app, one thread, one request at a time, FP32, five seconds; the two take turns.

    python benchmarks/agreement.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from deploycompress.artifact import read_json, write_json
from deploycompress.measure.environment import environment

RESULTS = Path(__file__).parent / "results" / "agreement.json"
NETWORKS = {"mobilenet_v3_small": 224, "resnet18": 224, "squeezenet1_1": 128}
SECONDS = 5
MOST = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, size in NETWORKS.items():
            file = exported(name, size, Path(folder))
            pairs = []
            for _ in range(arguments.rounds):
                pairs.append((ours_ms(file), theirs_ms(file)))
                print(name, *(f"{ms:.3f} ms" for ms in pairs[-1]), flush=True)
            ours, theirs = (median(each) for each in zip(*pairs, strict=True))
            ratio = median(a / b for a, b in pairs)
            rows.append(
                {"network": name, "ours_ms": ours, "theirs_ms": theirs, "ratio": ratio, "pairs": pairs}
            )
    within = sum(abs(row["ratio"] - 1) <= MOST for row in rows)
    write_json(arguments.output, {"environment": environment(), "most": MOST, "within": within, "rows": rows})
    for row in rows:
        print(f"{row['network']}: ours / benchmark_app {row['ratio']:.3f}")


def exported(name: str, size: int, folder: Path) -> Path:
    import torch
    import torchvision

    file = folder / f"{name}.onnx"
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    torch.onnx.export(network, (torch.zeros(1, 3, size, size),), file, dynamo=False, input_names=["image"])
    return file


def ours_ms(file: Path) -> float:
    found = file.with_suffix(".json")
    words = ["benchmark", str(file), "--runtime", "openvino", "--threads", "1", "--json", str(found)]
    told([sys.executable, "-m", "deploycompress", *words])
    (setting,) = read_json(found)["settings"]
    return float(setting["rows"][0]["latency_ms"]["p50"])


def theirs_ms(file: Path) -> float:
    app = Path(sysconfig.get_path("scripts")) / "benchmark_app"
    report = file.parent / "report"
    report.mkdir(exist_ok=True)
    words = [
        "-m",
        str(file),
        "-d",
        "CPU",
        "-api",
        "sync",
        "-hint",
        "none",
        "-nstreams",
        "1",
        "-nthreads",
        "1",
    ]
    words += [
        "-infer_precision",
        "f32",
        "-t",
        str(SECONDS),
        "-report_type",
        "no_counters",
        "-json_stats",
    ]
    told([str(app), *words, "-report_folder", str(report)])
    statistics: Any = json.loads((report / "benchmark_report.json").read_text())
    # The median, where no percentile is asked for.
    return float(statistics["execution_results"]["latency (ms)"])


def told(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
