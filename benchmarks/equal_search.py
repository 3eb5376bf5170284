"""Networks brought to a measured latency: how it is measured, and a knob turned until it fits."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from deploycompress.contracts import Batch, Store
from deploycompress.devices.jobs import measure
from deploycompress.graph.export import export_onnx
from deploycompress.measure.plan import Plan
from deploycompress.model.parity import to_numpy
from deploycompress.model.source import SourceModel
from deploycompress.pruning.costs import count
from deploycompress.pruning.latency.bench import Place

LEAST = 0.97  # of the target: a plan below it gives away accuracy for nothing
NOISE = 0.01  # of the target, that a quick measurement may be off
SHARES = [n / 24 for n in range(2, 25)]  # settings of a knob that are tried before it is refined
REFINED, FINEST = 5, 0.002  # times that a knob is halved further, and its last step
QUICK = (10, 40.0)  # blocks, and milliseconds of each
THOROUGH = (40, 40.0)
WIDEST = 0.03  # of a measurement's value: wider intervals are discarded
REPEATS = 4

Batches = Sequence[Batch]


@dataclass(frozen=True)
class Ratio:
    """A latency as a share of the dense network's, with its interval (95 %)."""

    value: float
    low: float
    high: float
    discarded: int = 0  # measurements before this one whose interval was too wide

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.value


class Stopwatch:
    """Measures networks beside the dense one, each in a process of its own, their blocks interleaved."""

    def __init__(self, model: SourceModel, dense: nn.Module, place: Place, workdir: Path) -> None:
        self._model, self._place, self._workdir = model, place, workdir
        self._dense = self._exported(dense)
        self.dense_ms = 0.0  # of the last measurement

    def quick(self, network: nn.Module) -> Ratio:
        return self._ratio(self._exported(network), *QUICK)

    def thorough(self, network: nn.Module) -> Ratio:
        """Raises nothing for a noisy machine: the narrowest of a few tries, whose interval says how good it is."""
        path = self._exported(network)
        tries: list[Ratio] = []
        while len(tries) < REPEATS and (not tries or tries[-1].width > WIDEST):
            tries.append(self._ratio(path, *THOROUGH))
        return replace(min(tries, key=lambda found: found.width), discarded=len(tries) - 1)

    def _ratio(self, path: Path, blocks: int, block_ms: float) -> Ratio:
        found = measure(
            self._place.device,
            [self._place.candidate("dense", self._dense), self._place.candidate("pruned", path)],
            baseline="dense",
            feed=to_numpy(self._model.example(self._place.target.batch_size)),
            plan=Plan(blocks=blocks, block_ms=block_ms, warmup_ms=4 * block_ms),
            workdir=self._workdir,
        )
        self.dense_ms = found["dense"].latency_ms.p50
        speedup = found["pruned"].speedup
        assert speedup is not None
        return Ratio(1 / speedup.value, 1 / speedup.high, 1 / speedup.low)

    def _exported(self, network: nn.Module) -> Path:
        path = Path(tempfile.mkdtemp(dir=self._workdir)) / "model.onnx"
        example = self._model.example(self._place.target.batch_size)
        export_onnx(network, self._model, path, feeds=[example])
        return path


@dataclass(frozen=True)
class Setting:
    """What all methods are given alike."""

    model: SourceModel
    dense: nn.Module  # trained
    target: float  # share of its latency
    batches: Batches  # to tell importance from
    validation: Batches  # to tell whether a fit without training is kept
    stopwatch: Stopwatch
    place: Place
    store: Store
    start: float | None = None  # where a search begins: what it ended at for another seed
    scores: dict[tuple[tuple[str, int], ...], dict[str, Tensor]] = field(default_factory=dict)  # made once


@dataclass(frozen=True)
class Pruned:
    network: nn.Module
    latency: Ratio
    plans: int  # that were measured on the way
    knob: float  # where the search ended: a share of MACs, a pruning ratio, a latency


# ---------------------------------------------------------------- a knob turned until the latency fits


@dataclass
class _Candidate:
    """What a method makes at one share that stays."""

    share: float
    network: nn.Module
    macs: float
    latency: Ratio | None = None  # None: not measured


def searched(setting: Setting, at: Callable[[float], nn.Module]) -> Pruned:
    """The widest network within the target, over all settings of the knob, and at least 97 % of the target where there is one.

    A knob need not be monotone (a width rounded to nothing leaves its layer whole), so what it gives is listed
    first, and bisected in the order of its multiply-accumulates.
    """
    search = _Search(setting, at)
    if setting.start is None or not search.close(search.add(setting.start)):
        for share in SHARES:
            search.add(share)
        search.bisect()
        search.refine()
    return search.confirmed()


class _Search:
    def __init__(self, setting: Setting, at: Callable[[float], nn.Module]) -> None:
        self._setting, self._at = setting, at
        self._found: dict[tuple[int, ...], _Candidate] = {}

    def add(self, share: float) -> _Candidate:
        network = self._at(share)
        widths = tuple(widths_of(network))
        if widths not in self._found:
            macs = count(network, self._setting.model)["macs"]
            self._found[widths] = _Candidate(share, network, macs)
        return self._found[widths]

    def fits(self, candidate: _Candidate) -> bool:
        if candidate.latency is None:
            candidate.latency = self._setting.stopwatch.quick(candidate.network)
        return candidate.latency.value <= self._setting.target

    def close(self, candidate: _Candidate) -> bool:
        fits = self.fits(candidate)
        assert candidate.latency is not None
        return fits and candidate.latency.value >= LEAST * self._setting.target

    def bisect(self) -> None:
        """Measure until two neighbours are known of which one fits, and their neighbours too."""
        ordered = self._ordered()
        low, high = 0, len(ordered)  # what lies below the first fits, what lies from the second on does not
        while low < high:
            middle = (low + high) // 2
            if self.fits(ordered[middle]):
                low = middle + 1
            else:
                high = middle
        for neighbour in ordered[max(0, low - 2) : low + 2]:
            self.fits(neighbour)

    def refine(self) -> None:
        """Halve the knob between the widest that fits and the next setting of it that does not."""
        for _ in range(REFINED):
            fitting = [c for c in self._found.values() if c.latency is not None and self.fits(c)]
            best = max(fitting, key=lambda c: c.macs, default=None)
            if best is None or self.close(best):
                return
            above = [c.share for c in self._found.values() if c.share > best.share and c.macs > best.macs]
            if not above or min(above) - best.share < FINEST:
                return
            self.fits(self.add((best.share + min(above)) / 2))

    def confirmed(self) -> Pruned:
        """Measured thoroughly, the widest first, until one is within the target; else the fastest of all."""
        target = self._setting.target
        measured = [c for c in self._ordered() if c.latency is not None]
        near = [c for c in measured if c.latency is not None and c.latency.value <= target * (1 + NOISE)]
        for candidate in reversed(near):
            latency = self._setting.stopwatch.thorough(candidate.network)
            if latency.value <= target:
                return Pruned(candidate.network, latency, len(measured), candidate.share)
        fastest = min(measured, key=lambda c: c.latency.value if c.latency else math.inf)
        latency = self._setting.stopwatch.thorough(fastest.network)
        return Pruned(fastest.network, latency, len(measured), fastest.share)

    def _ordered(self) -> list[_Candidate]:
        return sorted(self._found.values(), key=lambda c: c.macs)


def widths_of(network: nn.Module) -> Iterator[int]:
    """Output channels of every convolution and linear layer."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield module.weight.shape[0]
