"""Is the speed-up that `deploycompress compare` reports the same, within 5 %, when it is asked again every five minutes?

BASE is torchvision's resnet18, HEAD the same network with every inner width halved, both untrained, at batch size 1 and
on one thread. All speed-ups have to lie within 5 % of their median.

    python benchmarks/repeats.py --count 5 --minutes 5
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from deploycompress.artifact import write_json
from deploycompress.measure.environment import environment

RESULTS = Path(__file__).parent / "results" / "repeats.json"
SIZE = 112
MOST = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0, help="between two starts")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base, head = (exported(width, Path(folder)) for width in (64, 32))
        began = time.monotonic()
        for number in range(arguments.count):
            time.sleep(max(0.0, began + 60 * arguments.minutes * number - time.monotonic()))
            rows.append({"minute": round((time.monotonic() - began) / 60, 1), **compared(base, head)})
            print(rows[-1], flush=True)
    usual = median(row["speedup"] for row in rows)
    furthest = max(abs(row["speedup"] / usual - 1) for row in rows)
    document = {"environment": environment(), "most": MOST, "furthest": round(furthest, 4), "rows": rows}
    write_json(arguments.output, document)
    print(f"median {usual:.3f}, the furthest differs by {furthest:.1%}")


def exported(width: int, folder: Path) -> Path:
    import torch
    from torchvision.models.resnet import BasicBlock, ResNet

    class Narrow(BasicBlock):
        """Its inner convolution has ``width`` of 64 channels; the residual stream is as wide as ever."""

        def __init__(self, inplanes: int, planes: int, *more: Any, **named: Any) -> None:
            super().__init__(inplanes, planes, *more, **named)
            inner = planes * width // 64
            self.conv1 = torch.nn.Conv2d(inplanes, inner, 3, self.stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(inner)
            self.conv2 = torch.nn.Conv2d(inner, planes, 3, 1, 1, bias=False)

    torch.manual_seed(0)
    network, file = ResNet(Narrow, [2, 2, 2, 2]).eval(), folder / f"width{width}.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, SIZE, SIZE),), file, dynamo=False, input_names=["image"])
    return file


def compared(base: Path, head: Path) -> dict[str, Any]:
    words = ["compare", str(base), str(head), "--threads", "1", "--format", "json", "--fail-on", "never"]
    done = subprocess.run(
        [sys.executable, "-m", "deploycompress", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (p50,) = (row for row in json.loads(done.stdout)["rows"] if row["metric"] == "latency_p50")
    change = p50["change"]  # of HEAD's latency, as a ratio
    return {
        "base_ms": p50["base"],
        "head_ms": p50["head"],
        "speedup": 1 / (1 + change["value"]),
        "low": 1 / (1 + change["high"]),
        "high": 1 / (1 + change["low"]),
        "verdict": p50["verdict"],
    }


if __name__ == "__main__":
    main()
