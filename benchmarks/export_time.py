"""How long ResNet-50 takes from a checkpoint to a checked INT8 file: export, simplify, quantize, each with its checks.

Untrained weights and random images, as many as a pipeline calibrates with. The stages are the pipeline's own, in one
process that has imported its frameworks, as a step's process has.

    python benchmarks/export_time.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import arbiter

from deploycompress.artifact import Artifact, write_json
from deploycompress.contracts import RunContext, Stage
from deploycompress.measure.environment import environment
from deploycompress.model import checkpoint
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.stages.export import Export
from deploycompress.stages.quantize import Quantize

RESULTS = Path(__file__).parent / "results" / "export_time.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=arbiter.MODELS, default="resnet50")
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arbiter.CALIBRATION, arbiter.VALIDATION = arguments.calibration, 64
    with tempfile.TemporaryDirectory(prefix="export-time-") as folder:
        seconds = run(arguments.model, Path(folder))
    row = {"model": arguments.model, "calibration": arguments.calibration, "seconds": seconds}
    print(row, flush=True)
    write_json(arguments.output, {"environment": environment(), **row})


def run(name: str, folder: Path) -> dict[str, float]:
    context = arbiter.context_of(name, 2, folder)
    module = context.model.build()
    batches = [batch.inputs for batch in context.data.loader("val")]
    reestimate_batchnorm(module, batches, context.model.call)
    checkpoint.save(module, folder / "checkpoint", context.model)
    source = Artifact.of("model", "checkpoint", folder / "checkpoint")
    seconds = {}
    stages: tuple[tuple[str, Stage], ...] = (
        ("export", Export(Export.Config())),
        ("quantize", Quantize(Quantize.Config())),
    )
    for what, stage in stages:
        (folder / what).mkdir()
        source, seconds[what] = timed(stage, source, folder / what, context)
    return {**seconds, "together": sum(seconds.values())}


def timed(stage: Stage, source: Artifact, workdir: Path, context: RunContext) -> tuple[Artifact, float]:
    inputs: Any = {"source": (source,)}
    started = time.monotonic()
    outcome = stage.run(inputs, workdir, context)
    stage.ensures(inputs, outcome, context)
    return outcome.artifacts[0], time.monotonic() - started


if __name__ == "__main__":
    main()
