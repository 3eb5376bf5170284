"""What the training loop costs over a bare PyTorch loop that does the same arithmetic.

Both train the same network on the same batches in memory for one epoch and evaluate it once, in turn, many times;
each pair gives a ratio. The same arithmetic: forward, loss, backward, the gradient's norm and clipping, AdamW, a
learning rate of each step's own. A look at one validation batch before the first step is the loop's alone. Both end
with the same weights, bit by bit, which is checked.

The process keeps the memory that it frees in both, since the loop sets that for all of it. Without, most of the
difference between two loops is which of them happens to free something at the end of the heap, and so pays for page
faults: the place of zero_grad alone made 8 %, and both took a third more time.

    python benchmarks/loop_overhead.py --threads 1
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploycompress.artifact import write_json
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.contracts import Batch, RunContext
from deploycompress.data.tasks.classification import Classification
from deploycompress.measure.environment import environment
from deploycompress.measure.intervals import paired_speedup
from deploycompress.model.source import SourceModel
from deploycompress.recovery.determinism import deterministic
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.recipe import Recipe, learning_rate
from deploycompress.recovery.training import fit

RESULTS = Path(__file__).parent / "results" / "loop_overhead.json"
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {  # arguments of the examples' ResNet, and the images' side
    "resnet8 width 8, 32x32": ({"width": 8, "depth": 8}, 32),
    "resnet8 width 32, 32x32": ({"width": 32, "depth": 8}, 32),
    "resnet20 width 16, 32x32": ({"width": 16, "depth": 20}, 32),
}
RECIPE = Recipe(epochs=1, lr=1e-3, clip=1.0)


class Memory:
    """Random images and labels; the same batches in every epoch."""

    digest = "0" * 64

    def __init__(self, side: int, batches: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def made() -> Batch:
            images = torch.randn(64, 1, side, side, generator=generator)
            return Batch({"image": images}, torch.randint(0, 10, (64,), generator=generator), 64)

        self.splits = {"train": [made() for _ in range(batches)], "val": [made(), made()]}

    def loader(self, split: str, epoch: int | None = None) -> list[Batch]:
        return self.splits[split]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--batches", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.networks:
        rows.append({"network": name, **compared(*NETWORKS[name], arguments.pairs, arguments.batches)})
        print(rows[-1], flush=True)
    document = {"environment": environment(), "threads": arguments.threads, "rows": rows}
    write_json(arguments.output, document)


def compared(arguments: dict[str, Any], side: int, pairs: int, batches: int) -> dict[str, Any]:
    """Pairs of the loop and the bare one, the order turned over from pair to pair."""
    inputs = {"image": InputSpec(shape=("batch", 1, side, side))}
    model = SourceModel(
        ModelConfig(build="deploycompress.examples.resnet:build", args=arguments, inputs=inputs), 0
    )
    data: Any = Memory(side, batches)
    context = RunContext(
        model=model, data=data, task=Classification(), target=TargetConfig(), gates={}, store=None,  # type: ignore[arg-type]
        seed=0, rehearsal=False, emit=lambda event: None, stopping=lambda: False,
    )  # fmt: skip
    fresh = model.build()

    def ours(net: nn.Module) -> None:
        fit(net, Supervised(model, context.task), RECIPE, context)

    def bare_one(net: nn.Module) -> None:
        bare(net, data)

    times: dict[str, list[list[int]]] = {"ours": [], "bare": []}
    for number in range(pairs + 1):  # the first pair warms up
        order: list[tuple[str, Callable[[nn.Module], None]]] = [("ours", ours), ("bare", bare_one)]
        trained = {}
        for label, train in order if number % 2 else reversed(order):
            trained[label] = copy.deepcopy(fresh)
            began = time.perf_counter_ns()
            train(trained[label])
            if number:
                times[label].append([time.perf_counter_ns() - began])
        pairs_of_tensors = zip(
            trained["ours"].state_dict().values(), trained["bare"].state_dict().values(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs_of_tensors), "the two do not compute the same"
    ratio = paired_speedup(times["ours"], times["bare"])
    return {
        "overhead": ratio.value - 1,
        "interval": [ratio.low - 1, ratio.high - 1],
        "bare_step_ms": sorted(t for (t,) in times["bare"])[pairs // 2] / batches / 1e6,
        "pairs": pairs,
    }


def bare(net: nn.Module, data: Memory) -> None:
    """The same training, written out."""
    with deterministic(0):
        trained = list(net.parameters())
        decayed = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": RECIPE.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            RECIPE.lr,
        )
        batches = data.loader("train")
        net.train()
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(RECIPE, step, len(batches))
            loss = nn.functional.cross_entropy(net(batch.inputs["image"]), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decayed + others, RECIPE.clip or 1.0)
            optimizer.step()
        net.eval()
        correct = 0
        with torch.inference_mode():
            for batch in data.loader("val"):
                correct += int((net(batch.inputs["image"]).argmax(1) == batch.targets).sum())


if __name__ == "__main__":
    main()
