"""Latency targets on well-known networks: what was asked for, what was measured, and how long it took.

Untrained weights, since latency does not depend on them, and a criterion without data. The plan that ``prune``
settles on is applied, exported and simplified as a pipeline does, and measured once more, longer and interleaved
with the unpruned model, in five jobs of its own: one process may differ from the next by 2 % for as long as it runs.
A job counts where the machine goes at the pace of the loop, told by the unpruned model: at another one a plan's share is
another. What those gave is kept beside it.

    python benchmarks/latency_targets.py --models resnet18 vit_tiny --targets 75% 50% 35%
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from deploycompress.artifact import write_json
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.contracts import Event
from deploycompress.devices.jobs import Candidate, measure
from deploycompress.engine.store import FileStore
from deploycompress.graph.export import export_onnx
from deploycompress.graph.quantization import quantize_onnx
from deploycompress.graph.simplify import simplify_onnx
from deploycompress.measure.environment import environment
from deploycompress.measure.plan import Plan
from deploycompress.model.parity import to_numpy
from deploycompress.model.source import SourceModel
from deploycompress.pruning.allocations.latency import Latency
from deploycompress.pruning.apply import apply
from deploycompress.pruning.criteria.group_norm import GroupNorm
from deploycompress.pruning.latency.bench import Bench, Place
from deploycompress.pruning.latency.planning import plan_by_measuring
from deploycompress.pruning.planning import Request
from deploycompress.pruning.scores import score
from deploycompress.pruning.target import Target

MODELS = {
    "resnet18": "torchvision:resnet18",
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "vit_tiny": "timm:vit_tiny_patch16_224",
}
JOBS, MOST_JOBS, PAUSE_S = 5, 20, 10.0
SAME_PACE = 0.03  # that the unpruned model may differ by
RESULTS = Path(__file__).parent / "results" / "latency_targets.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--targets", nargs="+", default=["75%", "50%", "35%"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"))
    parser.add_argument("--store", type=Path, help="keeps tables; an empty one is made where none is given")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    target = TargetConfig(threads=arguments.threads, precision=arguments.precision)
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(arguments.store or Path(folder) / "store")
        for name in arguments.models:
            for share in arguments.targets:
                row = {
                    "model": name,
                    "precision": target.precision,
                    **run(MODELS[name], share, target, store),
                }
                same = ("model", "target", "threads", "precision")
                rows = [r for r in rows if any(r[key] != row[key] for key in same)] + [row]
                print(json.dumps({k: v for k, v in row.items() if k != "plans"}), flush=True)
                write_json(arguments.output, {"environment": environment(), "rows": rows})


def run(build: str, share: str, target: TargetConfig, store: FileStore) -> dict[str, Any]:
    """One target on one model. ``seconds`` include table and probes only where the store had none."""
    inputs = {"image": InputSpec(shape=("batch", 3, 224, 224))}
    model = SourceModel(ModelConfig(build=build, args={}, weights=None, inputs=inputs), 0)
    module = model.build()
    with tempfile.TemporaryDirectory() as folder:
        place = Place.of(target)
        started = time.monotonic()
        plan = plan_by_measuring(
            Request(
                module,
                model,
                Target.model_validate({"latency": share}),
                Latency(),
                None,
                (),
                "best",
                lambda groups, worth: score(GroupNorm(), module, groups, (), None, model.call, worth),  # type: ignore[arg-type]
                None,
            ),
            Bench(place, store, Path(folder), _say),
        )
        seconds = time.monotonic() - started
        pruned = copy.deepcopy(module)
        apply(pruned, plan.groups, plan.kept, plan.removed)
        assert plan.figures is not None
        again, others = _again(model, module, pruned, place, Path(folder), plan.figures["unpruned"])
        wanted = float(share.rstrip("%")) / 100
        return {
            "target": wanted,
            "threads": target.threads,
            "reached": plan.allocated.reached,
            "settled": plan.figures["measured"] / plan.figures["unpruned"],
            "measured_again": mean(share for share, _ in again) if again else None,
            "each_process": [share for share, _ in again],
            "at_other_paces": [{"share": share, "unpruned_ms": ms} for share, ms in others],
            "unpruned_ms": plan.figures["unpruned"],
            "unpruned_again_ms": median(ms for _, ms in again) if again else None,
            "macs": plan.allocated.cost["macs"] / plan.original["macs"],
            "seconds": seconds,
            "prediction": plan.figures["prediction"],
            "plans": plan.figures["plans"],
        }


def _say(event: Event) -> None:
    if event.kind != "progress":
        print(" ", event.message, {k: round(v, 4) for k, v in event.figures.items()}, flush=True)


def _again(
    model: SourceModel, module: Any, pruned: Any, place: Place, folder: Path, unpruned_ms: float
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Of the exported and simplified files, job by job: the pruned one's share and the unpruned one's latency.

    First those at the pace of ``unpruned_ms``, then the others.
    """
    files = {}
    feed = model.example(place.target.batch_size)
    for name, subject in (("unpruned", module), ("pruned", pruned)):
        raw, files[name] = folder / f"{name}-raw.onnx", folder / f"{name}.onnx"
        export_onnx(subject, model, raw, feeds=[feed])
        simplify_onnx(raw, files[name], [to_numpy(feed)])
        if place.target.precision == "int8":
            quantize_onnx(files[name], folder / f"{name}.int8.onnx", [to_numpy(feed)])
            files[name] = folder / f"{name}.int8.onnx"
    candidates = [place.candidate(name, path) for name, path in files.items()]
    same: list[tuple[float, float]] = []
    others: list[tuple[float, float]] = []
    while len(same) < JOBS and len(same) + len(others) < MOST_JOBS:
        share, took_ms = _job(candidates, to_numpy(feed), place, folder)
        if abs(took_ms / unpruned_ms - 1) <= SAME_PACE:
            same.append((share, took_ms))
        else:
            others.append((share, took_ms))
            time.sleep(PAUSE_S)
    return same, others


def _job(candidates: list[Candidate], feed: Any, place: Place, folder: Path) -> tuple[float, float]:
    measured = measure(
        place.device,
        candidates,
        baseline="unpruned",
        feed=feed,
        plan=Plan(blocks=12, block_ms=100, warmup_ms=300),
        workdir=folder,
    )
    speedup = measured["pruned"].speedup
    assert speedup is not None
    return 1 / speedup.value, measured["unpruned"].latency_ms.p50


if __name__ == "__main__":
    main()
