"""Does our p50 agree with OpenVINO's own benchmark_app on the same file, within 5 %?

Untrained networks of torchvision are exported at batch size 1. Each file is measured by `deploycompress benchmark` in
OpenVINO and by benchmark_app, one thread, one request at a time, FP32. The two run at the same time, each on a core of
its own, which they exchange: on a machine that others share the next ten seconds may be a fifth slower than the last.

    python benchmarks/agreement.py --rounds 8
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from deploycompress.artifact import read_json, write_json
from deploycompress.measure.environment import environment

RESULTS = Path(__file__).parent / "results" / "agreement.json"
NETWORKS = {"mobilenet_v3_small": 224, "resnet18": 224, "squeezenet1_1": 128}
SECONDS = 12  # ours begins later and ends before
MOST = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows, cores = [], sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        for name, size in NETWORKS.items():
            file = exported(name, size, Path(folder))
            pairs = []
            for number in range(arguments.rounds):
                pairs.append(together(file, *(cores[::-1] if number % 2 else cores)))
                print(name, *(f"{ms:.3f} ms" for ms in pairs[-1]), flush=True)
            both = dict(zip(("ours_ms", "theirs_ms"), map(median, zip(*pairs, strict=True)), strict=True))
            ratio = median(a / b for a, b in pairs)
            rows.append({"network": name, **both, "ratio": ratio, "pairs": pairs})
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


def together(file: Path, our_core: int, their_core: int) -> tuple[float, float]:
    """Both at the same time, each on a core of its own: what happens to the machine meets both."""
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(theirs_ms, file, their_core)
        return ours_ms(file, our_core), theirs.result()


def ours_ms(file: Path, core: int) -> float:
    found = file.with_suffix(".json")
    words = ["benchmark", str(file), "--runtime", "openvino", "--threads", "1", "--json", str(found)]
    told([sys.executable, "-m", "deploycompress", *words], core)
    (setting,) = read_json(found)["settings"]
    return float(setting["rows"][0]["latency_ms"]["p50"])


def theirs_ms(file: Path, core: int) -> float:
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
    told([str(app), *words, "-report_folder", str(report)], core)
    statistics: Any = json.loads((report / "benchmark_report.json").read_text())
    # The median, where no percentile is asked for.
    return float(statistics["execution_results"]["latency (ms)"])


def told(words: list[str], core: int) -> None:
    words = ["taskset", "--cpu-list", str(core), *words]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
