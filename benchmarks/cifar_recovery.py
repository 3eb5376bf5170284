"""After recovery on CIFAR-10 (JPEG copy), at 2.11 and 2.57 times fewer MACs: how far from the dense network with the same training?

Published weights are adapted to the JPEG copy once; from that network everything starts, and it teaches. ``ours`` is
the prune stage; Torch-Pruning prunes to the same MACs in its own small steps. All get the same training of that many
epochs by the distill stage. ``dense`` is the network that all start from, fine-tuned on the labels with the same recipe
and budget; ``dense_distilled`` is given the teacher as well. The difference to ``dense`` is what is reported: test, read
once for each result, after the last epoch. A seed sets the calibration samples and the order of training.

    python benchmarks/cifar_recovery.py --data DIR --cache DIR --network resnet20 --epochs 5 --seeds 0 1 2
    python benchmarks/cifar_recovery.py --data DIR --cache DIR --network resnet56 --epochs 100 --seeds 0 1 2

What is finished is not run again, and a training that was cut goes on in the next command.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cifar_report import recovery_markdown
from cifar_stages import MODEL, Bench, add, begin, parser, recipe, unfinished
from torch import nn

from deploycompress.artifact import Artifact
from deploycompress.contracts import Outputs
from deploycompress.data.tasks.classification import Classification
from deploycompress.errors import Interrupted
from deploycompress.model import checkpoint
from deploycompress.pruning.costs import count

RESULTS = Path(__file__).parent / "results" / "cifar_recovery.json"
DENSE = ("dense", "dense_distilled")
# The prune stage's options beside the target; widths of any number, since MACs are what is counted.
OURS: dict[str, dict[str, Any]] = {
    "ours": {"align": 1},
    "ours_blocks": {"align": 1, "allocation": "latency"},  # whole residual blocks may go too
    "ours_uniform": {"align": 1, "allocation": "uniform"},
    "ours_isomorphic": {"align": 1, "allocation": "isomorphic"},
    "ours_taylor": {"align": 1, "criterion": "taylor"},
    "ours_group_norm": {"align": 1, "criterion": "group_norm"},  # Torch-Pruning's own criterion
    "ours_inner": {
        "align": 1,
        "exclude": ["conv1", "*.conv2"],
    },  # the residual streams stay as wide as they are
    "ours_rounds": {"align": 1},  # half of the way, FIRST of the epochs, the other half, the rest of them
}
# Their padded shortcuts are not what it was shown on: ``inner`` leaves the residual streams as wide as they are.
THEIRS = ("tp_magnitude", "tp_taylor", "tp_magnitude_inner", "tp_taylor_inner")
DEFAULT = (*DENSE, "ours", *THEIRS)
TEACHING: dict[str, dict[str, Any]] = {
    "kd": {"loss": "kd", "temperature": 4, "alpha": 0.9},
    "kd_features": {
        "loss": ["kd", "features"],
        "temperature": 4,
        "alpha": 0.9,
    },  # the best of `distillation.py`
}
FIRST = 0.4
TP_STEPS = 400  # of which as many are taken as the MACs want; the number that its authors use


def main() -> None:
    options = parser(__doc__.splitlines()[0], RESULTS)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument(
        "--adapt", type=int, help="epochs on the JPEG copy before all else; as many as --epochs"
    )
    options.add_argument("--speedups", nargs="+", type=float, default=[2.11, 2.57])
    options.add_argument("--methods", nargs="+", choices=(*DENSE, *OURS, *THEIRS), default=DEFAULT)
    options.add_argument("--teaching", choices=TEACHING, default="kd", help="of all that are taught")
    options.add_argument("--limit", type=int, help="training images, to try the script out; all otherwise")
    arguments = options.parse_args()
    begin(arguments)
    try:
        run(arguments)
    except Interrupted as interrupted:
        print(interrupted)
        raise SystemExit(interrupted.exit_code) from None


def run(arguments: argparse.Namespace) -> None:
    adapt = arguments.epochs if arguments.adapt is None else arguments.adapt
    fixed = {
        "network": arguments.network, "epochs": arguments.epochs, "adapted_epochs": adapt, "rate": arguments.rate,
        "precision": arguments.precision, "limit": arguments.limit, "teaching": arguments.teaching,
    }  # fmt: skip
    wanted = [
        {**fixed, "method": method, "speedup": speedup, "seed": seed}
        for seed in arguments.seeds
        for method in arguments.methods
        for speedup in ([1.0] if method in DENSE else arguments.speedups)
    ]
    wanted = unfinished(arguments.output, wanted)
    if not wanted:
        return
    bench = Bench.open(arguments.network, Path(arguments.data), arguments.cache, arguments.limit)
    train = recipe(arguments.epochs, arguments.rate, arguments.precision)
    start = bench.adapted({**train, "epochs": adapt})
    for key in wanted:
        row = {**key, **_row(bench, start, train, key)}
        add(arguments.output, row, recovery_markdown)


def _row(bench: Bench, start: Artifact, train: Mapping[str, Any], key: Mapping[str, Any]) -> dict[str, Any]:
    """One network from ``start``: pruned, trained, and only then judged on test."""
    began = time.monotonic()
    method, speedup, seed = key["method"], key["speedup"], key["seed"]
    loss = TEACHING[key["teaching"]] if method != "dense" else {**TEACHING["kd"], "alpha": 0.0}
    if method in OURS:
        source = start
        if method == "ours_rounds":
            epochs = round(FIRST * train["epochs"])
            source = bench.pruned(source, _target(math.sqrt(speedup), method), seed)
            source = bench.distilled(source, start, {**train, **loss, "epochs": epochs}, seed)
            train = {**train, "epochs": train["epochs"] - epochs}
        source = bench.pruned(source, _target(speedup, method), seed)
    elif method in THEIRS:
        make = partial(_torch_pruned, bench, start, method, speedup, seed)
        fixed = {"method": method, "speedup": speedup, "seed": seed, "source": start.sha256}
        source = bench.kept("torch_pruning", fixed, make)
    else:
        source = start
    trained = bench.distilled(source, start, {**train, **loss}, seed)
    cost, full = (count(network, bench.model) for network in (bench.network(trained), bench.model.build()))
    test, scores = bench.figures(trained, "test")
    return {
        "start": start.sha256[:12],  # differences are only taken within one
        "macs": cost["macs"],
        "params": cost["params"],
        "reached": full["macs"] / cost["macs"],
        "widths": [m.out_channels for m in bench.network(trained).modules() if isinstance(m, nn.Conv2d)],
        "validation_unrecovered": bench.figures(source, "val")[0],
        "validation": bench.figures(trained, "val")[0],
        "test": test,
        "correct": np.packbits(scores.astype(bool)).tobytes().hex(),
        "seconds": round(time.monotonic() - began, 1),
    }


def _target(speedup: float, method: str) -> dict[str, Any]:
    """The prune stage's options; a share is of the unpruned network."""
    return {"target": {"macs": f"{100 / speedup:.4f}%"}, **OURS[method]}


# ---------------------------------------------------------------- Torch-Pruning


def _torch_pruned(
    bench: Bench, start: Artifact, method: str, speedup: float, seed: int, folder: Path
) -> None:
    """Its global pruning in small steps until the MACs are as few, as its authors reproduce the published figures."""
    import torch_pruning

    network = bench.network(start).eval()
    full = count(network, bench.model)["macs"]
    taylor = method.startswith("tp_taylor")
    ignored = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if method.endswith("inner"):
        ignored += [m for name, m in network.named_modules() if name == "conv1" or name.endswith(".conv2")]
    kind = torch_pruning.importance
    pruner = torch_pruning.pruner.BasePruner(
        network,
        bench.model.example(1)["image"],
        importance=kind.GroupTaylorImportance() if taylor else kind.GroupMagnitudeImportance(),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=TP_STEPS,
        ignored_layers=ignored,
        in_channel_groups={},  # the defaults are shared and written to
        out_channel_groups={},
        num_heads={},
    )
    if taylor:
        _add_gradients(network, bench, seed)  # they are pruned together with their weights
    for _ in range(TP_STEPS):
        if full / count(network, bench.model)["macs"] >= speedup:
            break
        pruner.step()
    else:
        raise SystemExit(f"{method} found nothing with {speedup} times fewer MACs")
    network.zero_grad(set_to_none=True)
    checkpoint.save(network, folder / MODEL, bench.model)


def _add_gradients(network: nn.Module, bench: Bench, seed: int) -> None:
    """Of the mean loss over the calibration samples, which the prune stage scores on too."""
    loader = bench.images(seed).loader("calibration")
    for batch in loader:
        outputs = Outputs(bench.model.call(network, batch.inputs))
        (Classification().loss(outputs, batch) / len(loader)).backward()


if __name__ == "__main__":
    main()
