"""Whole models at chosen widths, exported untrained and measured beside the unpruned one on the target."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median

import torch
from torch import nn

from deploycompress.contracts import Model
from deploycompress.devices.jobs import Candidate, measure
from deploycompress.graph.export import export_onnx
from deploycompress.graph.quantization import quantize_onnx
from deploycompress.graph.simplify import simplify_onnx
from deploycompress.measure.measurement import Measurement
from deploycompress.measure.plan import Plan
from deploycompress.model.parity import to_numpy
from deploycompress.pruning.apply import apply
from deploycompress.pruning.blocks import Block, taken
from deploycompress.pruning.groups import ChannelGroup, choose
from deploycompress.pruning.latency.bench import Place
from deploycompress.pruning.latency.prediction import Widths

BASELINE = "unpruned"
# A machine changes its pace (a neighbour in its caches, two virtual cores that share a real one, a clock turned down),
# and models are slowed down unequally: where the unpruned ResNet-18 is 7 % slower, one with a third of it is 11 % slower.
UNSTEADY = 1.04  # the unpruned model this much slower than at its fastest: worth waiting for
SLOWED = 1.07  # and this much: what was measured beside it does not count
LUCKY = 10  # of so many jobs one may be faster than the machine's full pace is
PAUSE_S, PATIENCE_S = 10.0, 120.0  # between two measurements; of all pauses together


class WholeModels:
    """Measures ``module`` at given widths of its groups; latency does not depend on what its weights are.

    ``unpruned`` is what shares are of; where ``module`` was pruned before, it is the wider one. Figures
    are paired ratios to it, so that they can be compared although the machine was not the same all the time.
    """

    def __init__(
        self,
        unpruned: nn.Module,
        module: nn.Module,
        model: Model,
        groups: Sequence[ChannelGroup],
        blocks: Sequence[Block],
        place: Place,
        workdir: Path,
        progress: Callable[[float, str], None] = lambda done, message: None,
        expected_ms: float = 1.0,
    ) -> None:
        self._module, self._model, self._place = module, model, place
        self._groups, self._blocks = groups, blocks
        self._workdir, self._progress = workdir, progress
        self._feed = to_numpy(model.example(place.target.batch_size))
        self._paces_ms: list[float] = []  # the unpruned model's latency in every job
        self._pace_ms = expected_ms
        self._patience_s = PATIENCE_S
        self._expected_ms = expected_ms
        self.notes: tuple[str, ...] = ()  # what disturbed the unpruned model in the last job
        self._baseline = self._candidate(BASELINE, unpruned, Path(tempfile.mkdtemp(dir=workdir)))

    @property
    def unpruned_ms(self) -> float:
        """Median latency of the unpruned model over all jobs at full pace; before the first what was expected."""
        return median(filter(self.at_full_pace, self._paces_ms)) if self._paces_ms else self._expected_ms

    @property
    def pace_ms(self) -> float:
        """The unpruned model's latency in the last measurement; of several processes in the slowest."""
        return self._pace_ms

    def at_full_pace(self, pace_ms: float, tolerance: float = SLOWED) -> bool:
        """Whether what was measured beside an unpruned model of this latency counts."""
        fastest = sorted(self._paces_ms)[len(self._paces_ms) // LUCKY]
        return pace_ms <= tolerance * fastest

    def measure(
        self, plans: Sequence[Widths], *, blocks: int, block_ms: float, processes: int = 1
    ) -> list[float]:
        """Each plan's latency as a share of the unpruned model's, measured interleaved with it.

        The mean where each is measured in several ``processes``, one after another. Measured again after a
        while where the machine was slower than before; as it is when PATIENCE_S have been waited in all.
        Raises StageFailed when a plan does not export or run, EnvironmentMissing when the device fails.
        """
        # A large model's files are gigabytes, and there may be thirty plans.
        with tempfile.TemporaryDirectory(dir=self._workdir, prefix="plans-") as folder:
            candidates = []
            for number, plan in enumerate(plans):
                self._progress(0.0, f"exporting model {number + 1} of {len(plans)} to measure")
                candidates.append(self._candidate(f"plan{number}", self._pruned(plan), Path(folder)))
            jobs = [self._measured(candidates, blocks, block_ms) for _ in range(processes)]
        found, paces_ms = zip(*jobs, strict=True)
        self._pace_ms = max(paces_ms)
        return [mean(ratios) for ratios in zip(*found, strict=True)]

    def _measured(
        self, plans: Sequence[Candidate], blocks: int, block_ms: float
    ) -> tuple[list[float], float]:
        """The plans' ratios in one process, and what the unpruned model took beside them."""
        while True:
            measured = measure(
                self._place.device,
                [self._baseline, *plans],
                baseline=BASELINE,
                feed=self._feed,
                plan=Plan(blocks=blocks, block_ms=block_ms, warmup_ms=block_ms, least_samples=3 * blocks),
                workdir=self._workdir,
                progress=self._progress,
            )
            pace_ms = measured[BASELINE].latency_ms.p50
            self._paces_ms.append(pace_ms)
            if self.at_full_pace(pace_ms, UNSTEADY) or self._patience_s <= 0:
                break
            self._progress(0.0, "the machine runs slower than before: measuring again in a while")
            time.sleep(PAUSE_S)
            self._patience_s -= PAUSE_S
        self.notes = measured[BASELINE].notes
        return [1 / _speedup(measured[plan.id]) for plan in plans], pace_ms

    def _pruned(self, widths: Widths) -> nn.Module:
        module = copy.deepcopy(self._module)
        any_of_them = {group.id: torch.ones(group.width) for group in self._groups}
        kept = choose(self._groups, any_of_them, widths)
        apply(module, self._groups, kept, taken(self._blocks, widths))
        return module

    def _candidate(self, id: str, module: nn.Module, workdir: Path) -> Candidate:
        folder = workdir / id
        folder.mkdir()
        example = self._model.example(self._place.target.batch_size)
        raw, path = folder / "raw.onnx", folder / "model.onnx"
        export_onnx(module, self._model, raw, feeds=[example])
        # As it will be shipped: a transformer's file is up to 5 % faster for it, a pruned one's by another share.
        simplify_onnx(raw, path, [to_numpy(example)])
        if self._place.target.precision == "int8":
            quantized = folder / "int8" / "model.onnx"
            quantized.parent.mkdir()
            quantize_onnx(path, quantized, [to_numpy(example)], facts=self._place.device.facts())
            path = quantized
        return self._place.candidate(id, path)


def _speedup(measured: Measurement) -> float:
    assert measured.speedup is not None  # a job with a baseline
    return measured.speedup.value
