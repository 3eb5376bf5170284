"""At equal measured latency and equal recovery: what accuracy do our plans, uniform and Torch-Pruning's global pruning keep?

Real trained weights on real data. The dense network is first fine-tuned on the data; from there every method prunes
it to the same share of its latency, by a loop of its own that measures, and every result gets the same recovery
(steps, samples in the same order, distillation from the fine-tuned network). "dense" is that network, given the
same recovery. A seed sets the calibration samples and the order of the recovery, and differences are taken within
it. Choices are made on validation; test is read once for each result, after its last step.

    python benchmarks/equal_latency.py --data DIR --cache DIR --networks resnet20 --seeds 0 1 2

Pruning measures and wants a quiet machine, recovery does not: ``--only prune`` and ``--only recover`` do the one or
the other. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import real_data
import torch
from equal_methods import (
    ours,
    ours_plain,
    torch_pruning_global,
    uniform,
)
from equal_recovery import Recipe, correct, settle_batchnorm, train
from equal_report import markdown
from equal_search import Pruned, Ratio, Setting, Stopwatch, widths_of
from equal_subjects import SUBJECTS, Subject
from torch import Tensor, nn

from deploycompress.artifact import read_json, write_json, write_text
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.contracts import Batch
from deploycompress.engine.store import FileStore
from deploycompress.graph.operators import operators
from deploycompress.measure.environment import environment
from deploycompress.model import checkpoint
from deploycompress.model.source import SourceModel
from deploycompress.pruning.costs import count
from deploycompress.pruning.latency.alignment import measured_alignment
from deploycompress.pruning.latency.bench import Place

RESULTS = Path(__file__).parent / "results" / "equal_latency.json"
CALIBRATION, CALIBRATION_BATCH = 2048, 32  # samples to tell importance from
VALIDATION = 512  # samples that decide whether a fit without training is kept
ROW = "row.json"

METHODS: dict[str, Callable[[Setting, int], Pruned]] = {
    "ours": ours,
    "ours_plain": ours_plain,
    "uniform": uniform,
    "tp_magnitude": lambda setting, align: torch_pruning_global(setting, "magnitude", align),
    "tp_taylor": lambda setting, align: torch_pruning_global(setting, "taylor", align),
    "tp_magnitude_unrounded": lambda setting, align: torch_pruning_global(setting, "magnitude", None),
    "tp_taylor_unrounded": lambda setting, align: torch_pruning_global(setting, "taylor", None),
}
DENSE = "dense"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("DEPLOYCOMPRESS_DATA"))
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=[DENSE, *METHODS], default=[*METHODS, DENSE])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", choices=("prune", "recover"))
    parser.add_argument("--steps", type=int, help="of the recovery, in place of each network's own")
    parser.add_argument("--target", type=float, help="share of the latency, in place of each network's own")
    parser.add_argument("--align", type=int, help="step between widths, in place of what is measured to pay")
    parser.add_argument(
        "--cache", type=Path, required=True, help="keeps decoded data, dense networks and tables"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("this needs real data: give its folder by --data or DEPLOYCOMPRESS_DATA")
    torch.set_num_threads(1)
    known = read_json(arguments.output) if arguments.output.exists() else {"rows": [], "notes": []}
    for network in arguments.networks:
        run_network(network, arguments, known)


def run_network(name: str, arguments: argparse.Namespace, known: dict[str, Any]) -> None:
    subject = SUBJECTS[name]
    recovery = replace(subject.recovery, steps=arguments.steps or subject.recovery.steps)
    target = arguments.target or subject.target
    wanted = [
        (seed, method)
        for seed in arguments.seeds
        for method in arguments.methods
        if not any(_key(row) == (name, target, recovery.steps, seed, method) for row in known["rows"])
    ]
    if not wanted:
        return
    sets = subject.sets(Path(arguments.data), arguments.cache)
    inputs = {"image": InputSpec(shape=("batch", *subject.shape))}
    model = SourceModel(
        ModelConfig(build=f"real_networks:{subject.build}", args={}, weights=None, inputs=inputs), 0
    )
    dense = _dense(subject, model, sets, Path(arguments.data), arguments.cache)
    folders = {at: _folder(arguments.cache, name, target, *at) for at in wanted}
    if arguments.only != "recover":
        _prune(subject, model, dense, sets, target, folders, arguments)
    if arguments.only == "prune":
        return
    for (seed, _), folder in folders.items():
        row = {
            "network": name,
            "data": subject.data,
            "steps": recovery.steps,
            **json.loads((folder / ROW).read_text()),
            **_recovered(checkpoint.load(folder, model), dense, model, sets, subject, recovery, seed),
        }
        print({k: v for k, v in row.items() if k not in ("correct", "data")}, flush=True)
        _add(arguments.output, known, row)


def _folder(cache: Path, network: str, target: float, seed: int, method: str) -> Path:
    return cache / "pruned" / f"{network}-{target:g}-{method}-{seed}"


def _prune(
    subject: Subject,
    model: SourceModel,
    dense: nn.Module,
    sets: real_data.Sets,
    target: float,
    folders: Mapping[tuple[int, str], Path],
    arguments: argparse.Namespace,
) -> None:
    """Fill every folder that has no network yet; each search begins where that of another seed ended."""
    place, store = Place.of(TargetConfig(threads=1, batch_size=1)), FileStore(arguments.cache / "store")
    align = arguments.align or measured_alignment(operators(dense, model, 1), place, store, lambda *_: None)
    knobs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as workdir:
        stopwatch = Stopwatch(model, dense, place, Path(workdir))
        for (seed, method), folder in folders.items():
            if (folder / ROW).exists():
                knobs[method] = json.loads((folder / ROW).read_text())["knob"]
                continue
            setting = Setting(
                model,
                dense,
                target,
                _calibration(sets.train, subject, seed),
                _validation(sets.validation, subject),
                stopwatch,
                place,
                store,
                knobs.get(method),
            )
            started = time.monotonic()
            if method == DENSE:
                pruned = Pruned(copy.deepcopy(dense), Ratio(1.0, 1.0, 1.0), 0, 1.0)
            else:
                pruned = METHODS[method](setting, align)
            knobs[method] = pruned.knob
            row = {
                "target": target,
                "seed": seed,
                "method": method,
                "align": align,
                "latency": pruned.latency.value,
                "interval": [pruned.latency.low, pruned.latency.high],
                "discarded": pruned.latency.discarded,
                "dense_ms": stopwatch.dense_ms,
                "plans": pruned.plans,
                "knob": pruned.knob,
                "seconds_of_search": round(time.monotonic() - started, 1),
            }
            checkpoint.save(pruned.network, folder, model)
            write_json(folder / ROW, row)
            print(row, list(widths_of(pruned.network)), flush=True)


def _add(output: Path, known: dict[str, Any], row: dict[str, Any]) -> None:
    known["rows"].append(row)
    document = {**known, "environment": environment()}
    write_json(output, document)
    write_text(output.with_suffix(".md"), markdown(document["rows"], document["notes"]))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["network"], row["target"], row["steps"], row["seed"], row["method"]


def _dense(subject: Subject, model: SourceModel, sets: real_data.Sets, data: Path, cache: Path) -> nn.Module:
    """The published weights, fine-tuned on this data; or trained on it from nothing. Kept in ``cache``."""
    network = model.build()
    path = cache / "dense" / f"{subject.build}-{subject.dense.steps}.pth"
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    if subject.weights is not None:
        network.load_state_dict(dict(subject.weights(data)))
        before = correct(network, sets.validation, subject.preparation).mean()
        print(f"{subject.build}: validation accuracy as published {before:.2%}", flush=True)
    if subject.dense.steps:
        train(network, None, sets.train, subject.preparation, subject.dense, seed=1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    accuracy = correct(network, sets.validation, subject.preparation).mean()
    print(f"{subject.build}: validation accuracy to start from {accuracy:.2%}", flush=True)
    return network.to(memory_format=torch.contiguous_format).eval()


def _calibration(samples: real_data.Samples, subject: Subject, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return _batches(samples, subject, torch.randperm(len(samples), generator=generator)[:CALIBRATION])


def _validation(samples: real_data.Samples, subject: Subject) -> list[Batch]:
    return _batches(samples, subject, torch.arange(min(len(samples), VALIDATION)))


def _batches(samples: real_data.Samples, subject: Subject, chosen: Tensor) -> list[Batch]:
    return [
        Batch(
            {"image": subject.preparation.normalise(samples.inputs[part])},
            samples.labels[part] if subject.recovery.labels else None,
            len(part),
        )
        for part in chosen.split(CALIBRATION_BATCH)
    ]


def _recovered(
    network: nn.Module,
    dense: nn.Module,
    model: SourceModel,
    sets: real_data.Sets,
    subject: Subject,
    recovery: Recipe,
    seed: int,
) -> dict[str, Any]:
    """Accuracy before, and after a recovery that is the same for all; in the order of the test samples."""
    found = count(network, model)
    preparation = subject.preparation
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    settle_batchnorm(network, sets.train, preparation, recovery.batch_size, seed)
    before = correct(network, sets.validation, preparation).mean()
    started = time.monotonic()
    teacher = copy.deepcopy(dense).eval().to(memory_format=torch.channels_last)
    train(network, teacher, sets.train, preparation, recovery, seed)
    test = correct(network, sets.test, preparation)
    return {
        "macs": found["macs"],
        "params": found["params"],
        "widths": widths,
        "validation_unrecovered": float(before),
        "validation": float(correct(network, sets.validation, preparation).mean()),
        "test": float(test.mean()),
        "correct": np.packbits(test).tobytes().hex(),
        "seconds_of_recovery": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    main()
