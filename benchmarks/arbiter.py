"""Does the arbiter choose the fastest artefact? Its choice beside every correct candidate, measured for longer.

Each network (untrained weights, batch statistics of its own inputs: latency does not depend on them) is exported,
simplified and given to ``compile`` as a pipeline does, with its own budget. Then every candidate that it found to be
right is measured again beside the FP32 baseline in ONNX Runtime, interleaved, for longer and in several jobs of its
own: the fastest of those is what the choice is held against. Accuracy has no part in it, since untrained networks
have none; what is right is told by the outputs.

    python benchmarks/arbiter.py --models resnet18 distilbert
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploycompress.artifact import Artifact, write_json
from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig, TaskConfig
from deploycompress.contracts import Batch, Event, RunContext
from deploycompress.data.open import open_task
from deploycompress.devices.jobs import Candidate, measure, open_device
from deploycompress.engine.store import FileStore
from deploycompress.graph.arbiter.decision import Arbiter, Terms
from deploycompress.graph.feeds import take
from deploycompress.measure.environment import environment
from deploycompress.measure.plan import Plan
from deploycompress.model import checkpoint
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.parity import to_numpy
from deploycompress.model.source import SourceModel
from deploycompress.model.untrained import wake_zero_layers
from deploycompress.stages.export import Export

IMAGE = {"image": {"shape": ["batch", 3, 224, 224]}}
TOKENS = {"input_ids": {"shape": ["batch", 128], "dtype": "int64", "max": 30000}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("torchvision:resnet18", IMAGE),
    "resnet50": ("torchvision:resnet50", IMAGE),
    "mobilenet_v2": ("torchvision:mobilenet_v2", IMAGE),
    "mobilenet_v3": ("torchvision:mobilenet_v3_small", IMAGE),
    "efficientnet_b0": ("torchvision:efficientnet_b0", IMAGE),
    "vit_tiny": ("timm:vit_tiny_patch16_224", IMAGE),
    "distilbert": (f"{Path(__file__).resolve()}:distilbert", TOKENS),
}
CALIBRATION, VALIDATION = 64, 32  # samples
# Of the measurement that the choice is held against.
PLAN, JOBS = Plan(blocks=12, block_ms=110.0, warmup_ms=300.0, enough_samples=200), 3
RESULTS = Path(__file__).parent / "results" / "arbiter.json"


def distilbert() -> nn.Module:
    """Of DistilBERT's size: six layers of 768, 66 million parameters."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    return Logits(DistilBertForSequenceClassification(DistilBertConfig(num_labels=8)))


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids).logits
        return logits


class RandomData:
    """Random inputs with random labels, the same every time."""

    digest, interface = "random", {}

    def __init__(self, model: SourceModel) -> None:
        self._batches = {
            split: list(self._split(model, count, seed))
            for split, count, seed in (("calibration", CALIBRATION, 1), ("val", VALIDATION, 2))
        }

    def _split(self, model: SourceModel, count: int, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(0, count, 16):
            inputs = {
                name: torch.randint(0, spec.max or 2, _shape(spec), generator=generator)
                if spec.dtype == "int64"
                else torch.randn(_shape(spec), generator=generator)
                for name, spec in model.inputs.items()
            }
            yield Batch(inputs, torch.randint(0, 8, (16,), generator=generator), 16)

    def loader(self, split: str, epoch: int | None = None) -> list[Batch]:
        return self._batches["calibration" if split in ("train", "calibration") else "val"]


def _shape(spec: InputSpec) -> list[int]:
    return [size if isinstance(size, int) else 16 for size in spec.shape]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", default="10 min")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="arbiter-") as folder:
            row = {"model": name, **run(name, arguments.threads, arguments.budget, Path(folder))}
        same = ("model", "threads")
        rows = [r for r in rows if any(r[key] != row[key] for key in same)] + [row]
        write_json(arguments.output, {"environment": environment(), "rows": rows})
        print(json.dumps({k: v for k, v in row.items() if k != "candidates"}), flush=True)


def run(name: str, threads: int, budget: str, folder: Path) -> dict[str, Any]:
    context = context_of(name, threads, folder)
    source = exported(context, folder)
    started = time.monotonic()
    terms = Terms(
        None, tuple(sorted({1, threads}, reverse=True)), Quantity.parse(budget, "time"), _all(), None
    )
    (folder / "building").mkdir()
    (folder / "made").mkdir()
    arbiter = Arbiter(terms, source, source, folder / "building", context)
    outcome = arbiter.decide(folder / "made")
    seconds = time.monotonic() - started
    chosen = outcome.artifacts[0].id if outcome.artifacts else "baseline"
    ratios = measured(arbiter, source, context, folder)
    best = min(ratios, key=lambda id: ratios[id])
    return {
        "threads": threads,
        "choice": chosen,
        "choice_ratio": ratios[chosen],
        "fastest": best,
        "fastest_ratio": ratios[best],
        "apart": ratios[chosen] / ratios[best] - 1,
        "seconds": seconds,
        "candidates": [
            {**row, "measured_again": ratios.get(row["id"])} for row in outcome.details["candidates"]
        ],
    }


def context_of(name: str, threads: int, folder: Path) -> RunContext:
    build, inputs = MODELS[name]
    specs = {key: InputSpec.model_validate(spec) for key, spec in inputs.items()}
    model = SourceModel(ModelConfig(build=build, inputs=specs), 0, [Path(__file__).parent])
    return RunContext(
        model=model,
        data=RandomData(model),  # type: ignore[arg-type]
        task=open_task(TaskConfig()),
        target=TargetConfig(threads=threads),
        gates={},
        store=FileStore(folder / "store"),
        seed=0,
        rehearsal=False,
        emit=_say,
        stopping=lambda: False,
    )


def exported(context: RunContext, folder: Path) -> Artifact:
    """By the export stage itself, from a checkpoint with batch statistics of the inputs."""
    module = context.model.build()
    wake_zero_layers(module)
    batches = [batch.inputs for batch in context.data.loader("calibration")]
    reestimate_batchnorm(module, batches, context.model.call)
    saved, made = folder / "checkpoint", folder / "export"
    checkpoint.save(module, saved, context.model)
    made.mkdir()
    stage = Export(Export.Config())
    source = Artifact.of("model", "checkpoint", saved)
    return stage.run({"source": (source,)}, made, context).artifacts[0]


def measured(arbiter: Arbiter, source: Artifact, context: RunContext, folder: Path) -> dict[str, float]:
    """Latency as a share of the baseline's, by id; of all that are right, the median over jobs."""
    target = context.target
    candidates = [
        Candidate(
            entry.id(threads),
            entry.built.path,
            entry.recipe.runtime,
            target.provider,
            threads,
            entry.recipe.precision,
            entry.recipe.options,
        )
        for entry in arbiter.entries
        if entry.built is not None and entry.checked is not None and not entry.reason
        for threads in entry.threads
    ]
    baseline = Candidate("baseline", source.path, target.runtime, target.provider, target.threads)
    found: dict[str, list[float]] = {"baseline": [1.0]}
    for job in range(JOBS):
        (folder / f"job{job}").mkdir()
        rows = measure(
            open_device("local"),
            [baseline, *candidates],
            baseline="baseline",
            feed=to_numpy(take(context.data.loader("val"), target.batch_size)),
            plan=PLAN,
            workdir=folder / f"job{job}",
        )
        for candidate in candidates:
            speedup = rows[candidate.id].speedup_vs_target or rows[candidate.id].speedup
            assert speedup is not None
            found.setdefault(candidate.id, []).append(1 / speedup.value)
    return {id: statistics.median(values) for id, values in found.items()}


def _all() -> Quantity:
    """Untrained networks have no accuracy to lose."""
    return Quantity.parse("100 pp", "points")


def _say(event: Event) -> None:
    if event.kind != "progress":
        print(f"  {event.message} {asdict(event)['figures'] or ''}", flush=True)


if __name__ == "__main__":
    main()
