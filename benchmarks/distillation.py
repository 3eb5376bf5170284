"""Does distillation beat fine-tuning with the same budget, and which loss by how much?

A ResNet-20 with published weights is adapted to CIFAR-10's JPEG copy; it is the teacher. The prune stage makes a student
of it, and every loss of the project trains that student on 10,000 images by the same recipe: the same steps, samples in
the same order, learning rate and evaluation. ``fine_tuning`` is the distill stage with ``alpha: 0``, so that nothing but
the loss is another. What a loss is weighted by comes from its paper, and was not tuned here; labels have the rest.
Pairs are made within a seed, which sets the calibration samples, the student and the order of training.

    python benchmarks/distillation.py --data DIR --cache DIR --seeds 0 1 2

What is finished is not run again, and a training that was cut goes on in the next command.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cifar_report import distillation_markdown
from cifar_stages import Bench, add, begin, parser, recipe, unfinished

from deploycompress.artifact import Artifact
from deploycompress.errors import ConfigError, Interrupted
from deploycompress.pruning.costs import count
from deploycompress.registry import LOSSES

RESULTS = Path(__file__).parent / "results" / "distillation.json"
FINE_TUNING = "fine_tuning"
# Options of the distill stage. Soft labels have nine tenths and labels one, as in Zhao et al.'s code on CIFAR-100;
# where a paper adds its loss to the labels' (DKD, DIST, FitNets, attention transfer) each has one half, by alpha, and
# the loss its weight of there: DKD beta 8 and a warm-up of 20 in 240 epochs, DIST 2 and 2, features 100, attention 1000.
VARIANTS: dict[str, dict[str, Any]] = {
    FINE_TUNING: {"loss": "kd", "alpha": 0.0},
    "kd": {"loss": "kd", "temperature": 4, "alpha": 0.9},
    "kd_annealed": {
        "loss": "kd", "temperature": 4, "alpha": 0.9, "anneal": {"alpha": 0.5, "temperature": 1},
    },
    "dkd": {"loss": [{"dkd": {"beta": 8.0, "warmup": 0.08}}], "temperature": 4, "alpha": 0.5},
    "dist": {"loss": [{"dist": {"beta": 2.0, "gamma": 2.0}}], "temperature": 4, "alpha": 0.5},
    "mse": {"loss": "mse", "alpha": 0.9},
    "cosine": {"loss": "cosine", "alpha": 0.9},
    "features": {"loss": "features", "alpha": 0.5},
    "attention": {"loss": "attention", "alpha": 0.5},
    "kd_features": {"loss": ["kd", "features"], "temperature": 4, "alpha": 0.9},
    "kd_attention": {"loss": ["kd", "attention"], "temperature": 4, "alpha": 0.9},
    "token_kd": {"loss": "token_kd", "alpha": 0.9},
    "pixel_kd": {"loss": "pixel_kd", "alpha": 0.9},
}  # fmt: skip


def main() -> None:
    options = parser(__doc__.splitlines()[0], RESULTS)
    options.add_argument("--speedup", type=float, default=2.57, help="times fewer MACs of the student")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--adapt", type=int, default=5, help="epochs of the teacher on all of the JPEG copy")
    options.add_argument("--losses", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--limit", type=int, default=10_000, help="training images")
    arguments = options.parse_args()
    if absent := set(LOSSES) - set(_losses()):
        raise SystemExit(f"no variant here uses {', '.join(sorted(absent))}: add one")
    begin(arguments)
    try:
        run(arguments)
    except Interrupted as interrupted:
        print(interrupted)
        raise SystemExit(interrupted.exit_code) from None


def run(arguments: argparse.Namespace) -> None:
    fixed = {
        "network": arguments.network, "speedup": arguments.speedup, "epochs": arguments.epochs,
        "adapted_epochs": arguments.adapt, "rate": arguments.rate, "precision": arguments.precision,
        "limit": arguments.limit,
    }  # fmt: skip
    wanted = [{**fixed, "loss": loss, "seed": seed} for seed in arguments.seeds for loss in arguments.losses]
    wanted = unfinished(arguments.output, wanted)
    if not wanted:
        return
    bench = Bench.open(arguments.network, Path(arguments.data), arguments.cache, arguments.limit)
    train = recipe(arguments.epochs, arguments.rate, arguments.precision)
    teacher = bench.adapted({**train, "epochs": arguments.adapt})
    for key in wanted:
        target = {"macs": f"{100 / arguments.speedup:.4f}%"}
        student = bench.pruned(teacher, {"target": target, "align": 1}, key["seed"])
        row = {**key, "options": VARIANTS[key["loss"]], **_row(bench, student, teacher, train, key)}
        add(arguments.output, row, partial(distillation_markdown, reference=FINE_TUNING))


def _row(
    bench: Bench, student: Artifact, teacher: Artifact, train: Mapping[str, Any], key: Mapping[str, Any]
) -> dict[str, Any]:
    began = time.monotonic()
    try:
        trained = bench.distilled(student, teacher, {**train, **VARIANTS[key["loss"]]}, key["seed"])
    except ConfigError as error:  # a loss for outputs of another form
        return {"refused": str(error)}
    cost = count(bench.network(trained), bench.model)
    test, scores = bench.figures(trained, "test")
    return {
        "macs": cost["macs"],
        "validation_unrecovered": bench.figures(student, "val")[0],
        "validation": bench.figures(trained, "val")[0],
        "test": test,
        "correct": np.packbits(scores.astype(bool)).tobytes().hex(),
        "seconds": round(time.monotonic() - began, 1),
    }


def _losses() -> Iterator[str]:
    """The losses that some variant uses."""
    for options in VARIANTS.values():
        loss = options["loss"]
        for entry in loss if isinstance(loss, list) else [loss]:
            yield entry if isinstance(entry, str) else next(iter(entry))


if __name__ == "__main__":
    main()
