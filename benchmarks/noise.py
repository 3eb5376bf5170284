"""How often does a comparison of a file with itself raise an alarm, and is a slowdown of 5 % found?

Each comparison is what `deploycompress compare` does in mode quick: two artefacts and the first one's twin, a process
each. A network of its own kind and size stands behind every third of them. In half of the comparisons HEAD is BASE; in
the others a busy-wait of 5 % of the call's own median, measured when the artefact is loaded, is inside HEAD's timed
call. The two kinds take turns, so that the machine's moods meet both. Rows are kept as they come; run it again to go on.

    python benchmarks/noise.py --count 300
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from deploycompress.artifact import write_json  # noqa: E402
from deploycompress.commands.comparison import speed_lines  # noqa: E402
from deploycompress.commands.side_by_side import side_by_side  # noqa: E402
from deploycompress.devices.jobs import Candidate, open_device  # noqa: E402
from deploycompress.measure.environment import environment  # noqa: E402
from deploycompress.measure.intervals import noise_floor, word  # noqa: E402
from deploycompress.measure.plan import MODES  # noqa: E402

RESULTS = HERE / "results" / "noise.json"
SLOWDOWN = 0.05
RUNTIME = '''
"""ONNX Runtime with a busy-wait inside the timed call, a share of the call's own median."""
import contextlib
import time

import numpy as np


class Slowed:
    accepts = frozenset({"onnx"})
    libraries = ("onnxruntime",)

    def missing(self):
        return None

    @contextlib.contextmanager
    def open(self, path, options):
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        yield SlowedSession(session, options["share"])


class SlowedSession:
    def __init__(self, session, share):
        self.session, self.share = session, share
        self.inputs = {each.name: None for each in session.get_inputs()}

    def bind(self, feed):
        self.feed = dict(feed)
        plain, enough = [], time.perf_counter() + 0.3
        while len(plain) < 30 or len(plain) < 300 and time.perf_counter() < enough:
            began = time.perf_counter_ns()
            self.run()
            plain.append(time.perf_counter_ns() - began)
        wait_ns = int(self.share * np.median(plain[len(plain) // 3 :]))

        def call():
            self.run()
            end = time.perf_counter_ns() + wait_ns
            while time.perf_counter_ns() < end:
                pass

        return call if wait_ns else self.run

    def run(self):
        self.outputs = self.session.run(None, self.feed)

    def fetch(self):
        return {each.name: value for each, value in zip(self.session.get_outputs(), self.outputs)}
'''


def networks(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    """Three sizes of a ResNet-8 as ONNX files, each with an input."""
    import torch

    from deploycompress.examples.resnet import build

    found = {}
    for width, size in ((16, 32), (32, 32), (48, 48)):
        path = folder / f"resnet8-{width}-{size}.onnx"
        image = torch.randn(1, 1, size, size)
        module = build(width=width, depth=8).eval()
        torch.onnx.export(module, (image,), path, input_names=["image"], dynamo=True, verbose=False)
        found[path.stem] = (path, image.numpy())
    return found


def compare(path: Path, image: np.ndarray, share: float) -> dict[str, Any]:
    """One comparison; BASE is the file as it is."""
    runtime = f"{path.parent / 'slowed.py'}:Slowed"
    sides = [
        Candidate(name, path, runtime, threads=1, options={"share": of})
        for name, of in (("BASE", 0.0), ("HEAD", share))
    ]
    began = time.monotonic()
    found = side_by_side(
        open_device("local"), sides, {"image": image}, MODES["quick"], lambda *_: None, again=True
    )
    seconds = time.monotonic() - began
    base, head = found.rows
    speedup, again = head.speedups["p50"], found.again
    assert speedup is not None and again is not None
    twin = again.speedups["p50"]
    assert twin is not None
    return {
        "network": path.stem,
        "share": share,
        "seconds": seconds,
        "p50_ms": [base.measurement.latency_ms.p50, head.measurement.latency_ms.p50],
        "speedup": asdict(speedup),
        "twin": asdict(twin),
        "floor": noise_floor(twin),
        "disturbed": head.measurement.disturbed,
        "notes": list(head.measurement.notes),
        "word": found.word(head),
        "verdicts": {line.metric: line.verdict for line in speed_lines(found)},
        "plain_word": word(speedup, noise_floor(twin)),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    told = {
        name: Counter(row["word"] for row in rows if (row["share"] > 0) == slowed)
        for name, slowed in (("same file", False), ("slowed", True))
    }
    same = [row["verdicts"] for row in rows if not row["share"]]
    figures = {
        metric: sum(verdicts[metric] in ("better", "worse") for verdicts in same)
        for metric in (same[0] if same else ())
    }
    seconds = [row["seconds"] for row in rows]
    return {
        "words": {name: dict(words) for name, words in told.items()},
        "same file, told apart": {
            **figures,
            "any worse": sum("worse" in verdicts.values() for verdicts in same),
        },
        "seconds": {"median": float(np.median(seconds)), "most": max(seconds)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="of each kind")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after these; run it again to go on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = json.loads(given.output.read_text())["rows"] if given.output.exists() else []
    end = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slowed.py").write_text(RUNTIME)
        files = list(networks(folder).values())
        while len(rows) < 2 * given.count and time.monotonic() < end:
            path, image = files[len(rows) // 2 % len(files)]
            rows.append(compare(path, image, SLOWDOWN * (len(rows) % 2)))
            document = {"summary": summary(rows), "environment": environment(), "rows": rows}
            write_json(given.output, document)
            row = rows[-1]
            print(
                f"{len(rows)} {row['network']} {row['share']:.2f} {row['speedup']['value']:.4f} "
                f"({row['speedup']['low']:.4f} to {row['speedup']['high']:.4f}) floor {row['floor']:.4f} "
                f"{row['word']} {row['seconds']:.1f} s {'disturbed' if row['disturbed'] else ''}",
                flush=True,
            )
    print(json.dumps(summary(rows), indent=2))


if __name__ == "__main__":
    main()
