"""The hops of a probe: one model with random weights, from pruning to a measured INT8 file."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.devices.jobs import Candidate, measure, open_device
from deploycompress.errors import DeployCompressError, StageFailed
from deploycompress.graph.execution import run_onnx
from deploycompress.graph.export import export_onnx
from deploycompress.graph.quantization import quantize_onnx
from deploycompress.graph.simplify import simplify_onnx
from deploycompress.measure.environment import environment
from deploycompress.measure.plan import Plan
from deploycompress.model import checkpoint
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.parity import compare, constant_outputs, to_numpy, worst
from deploycompress.model.source import SourceModel
from deploycompress.model.untrained import wake_zero_layers
from deploycompress.pruning.allocations.uniform import Uniform
from deploycompress.pruning.apply import apply
from deploycompress.pruning.budget import Budget, allocate, worth
from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.criteria.magnitude import Magnitude
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import choose, on_grid
from deploycompress.pruning.masked import masked
from deploycompress.pruning.scores import score
from deploycompress.pruning.trials import livened

ALIGN = 8
BATCHES = (1, 3)  # parity is checked at; neither is the one that a graph is traced with
SAMPLES = 8  # random inputs that batch statistics and quantization ranges come from
TOLERANCE = 1e-3  # of max|y|
PLAN = Plan(blocks=10, block_ms=100.0, warmup_ms=200.0)
NEEDS = {
    "prune": (),
    "checkpoint": ("prune",),
    "export": ("prune",),
    "simplify": ("export",),
    "quantize": ("simplify",),
    "benchmark": ("simplify",),
}

Figures = dict[str, float]


@dataclass(frozen=True)
class Hop:
    """How one hop went; ``error`` is the first line of what stopped it."""

    ok: bool
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "seconds": round(self.seconds, 3), **self.figures, "error": self.error}

    def line(self, name: str) -> str:
        figures = "  ".join(f"{key} {value:.4g}" for key, value in self.figures.items())
        return (
            f"{'ok    ' if self.ok else 'failed'}  {name:<10} {self.seconds:6.1f} s  {self.error or figures}"
        )


@dataclass
class Report:
    """What a probe found; ratios are None where their hop failed."""

    build: str
    hops: dict[str, Hop] = field(default_factory=dict)
    reached: bool = False
    shortfall: str = "it was not pruned"
    macs_ratio: float | None = None
    params_ratio: float | None = None
    latency_ratio: float | None = None
    unpruned: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(hop.ok for hop in self.hops.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "build": self.build,
            "ok": self.ok,
            "reached": self.reached,
            "hops": {name: hop.to_json() for name, hop in self.hops.items()},
            "macs_ratio": self.macs_ratio,
            "params_ratio": self.params_ratio,
            "latency_ratio": self.latency_ratio,
            "unpruned": [{"layer": layer, "reason": reason} for layer, reason in self.unpruned],
            "environment": environment(),
        }


def probe(
    build: str,
    inputs: Mapping[str, InputSpec],
    batch_size: int,
    target: tuple[str, float],
    say: Callable[[str], None],
) -> Report:
    """Take ``build`` through every hop; a hop that fails is recorded, and so are those that need it.

    ``target``: ("macs", share that remains) or ("ratio", share of channels removed).
    Raises ConfigError, or EnvironmentMissing, when there is no such model.
    """
    model = SourceModel(ModelConfig(build=build, args={}, weights=None, inputs=dict(inputs)), 0, [Path.cwd()])
    report = Report(build)
    with tempfile.TemporaryDirectory(prefix="deploycompress-probe-") as folder:
        subject = _Subject(model, model.build(), batch_size, target, Path(folder), report)
        for name, needed in NEEDS.items():
            report.hops[name] = _hop(name, needed, getattr(subject, name), report)
            say(report.hops[name].line(name))
    return report


def _hop(name: str, needed: tuple[str, ...], run: Callable[[], Figures], report: Report) -> Hop:
    missing = [other for other in needed if not report.hops[other].ok]
    if missing:
        return Hop(False, 0.0, error=f"not run: it needs {missing[0]}, which failed")
    started = time.monotonic()
    try:
        figures = run()
    except Exception as error:  # the model under probe, or a framework, may raise anything
        text = str(error).strip().splitlines() or ["no message"]
        kind = "" if isinstance(error, DeployCompressError) else f"{type(error).__name__}: "
        return Hop(False, time.monotonic() - started, error=kind + text[0])
    return Hop(True, time.monotonic() - started, figures)


class _Subject:
    """The model on its way; each method is a hop and gives its figures."""

    def __init__(
        self,
        model: SourceModel,
        module: nn.Module,
        batch_size: int,
        target: tuple[str, float],
        folder: Path,
        report: Report,
    ) -> None:
        self.model, self.unpruned, self.batch_size = model, module, batch_size
        self.target, self.folder, self.report = target, folder, report
        self.pruned = module
        self.feeds = [model.example(size) for size in BATCHES]
        self.samples = model.example(SAMPLES)

    def prune(self) -> Figures:
        wake_zero_layers(self.unpruned)
        # Untrained networks may give outputs of 1e-22, on which every comparison holds.
        reestimate_batchnorm(self.unpruned, [self.samples], self.model.call)
        if not self._varying(self.unpruned):  # layer scales of 1e-5, through all of which every pixel goes
            self.unpruned = livened(self.unpruned, self.model)
        varying = self._require_varying(self.unpruned, None)
        found = find_groups(self.unpruned, self.model)
        self.report.unpruned = [(u.layer, u.reason) for u in found.unpruned]
        groups = on_grid(found.groups, ALIGN)
        costs = WidthCosts(self.unpruned, groups, self.model)
        kind, share = self.target
        limit = {"macs": ("macs", share), "ratio": ("channels", 1 - share)}[kind]
        budget = Budget({limit[0]: limit[1] * costs.full[limit[0]]}, costs.full)
        scores = score(
            Magnitude(), self.unpruned, groups, (), _NO_TASK, self.model.call, worth(groups, costs, budget)
        )
        allocated = allocate(Uniform(), groups, scores, costs, budget, on_unreachable="best")
        kept = choose(groups, scores, allocated.widths)
        self.pruned = copy.deepcopy(self.unpruned)
        apply(self.pruned, groups, kept)
        apart = self._apart(masked(self.unpruned, groups, kept), self.pruned, "the masked model")
        reestimate_batchnorm(self.pruned, [self.samples], self.model.call)
        self._require_varying(self.pruned, varying)
        cost = count(self.pruned, self.model)
        self.report.reached, self.report.shortfall = allocated.reached, allocated.shortfall
        self.report.macs_ratio = cost["macs"] / max(1.0, costs.full["macs"])
        self.report.params_ratio = cost["params"] / max(1.0, costs.full["params"])
        return {
            "groups": float(len(groups)),
            "macs": cost["macs"],
            "params": cost["params"],
            "masked_relative": apart,
        }

    def checkpoint(self) -> Figures:
        folder = self.folder / "model"
        checkpoint.save(self.pruned, folder, self.model)
        loaded = checkpoint.load(folder, self.model)
        return {"checkpoint_relative": self._apart(self.pruned, loaded, "what was saved")}

    def export(self) -> Figures:
        # The unpruned one is what the pruned one's latency is held against.
        export_onnx(self.unpruned, self.model, self._file("unpruned-raw"), feeds=self.feeds[:1])
        exported = export_onnx(self.pruned, self.model, self._file("pruned-raw"), feeds=self.feeds)
        hop = worst(list(exported.parity))
        return {"export_relative": hop.relative, "bytes": float(self._file("pruned-raw").stat().st_size)}

    def simplify(self) -> Figures:
        arrays = [to_numpy(feed) for feed in self.feeds]
        simplify_onnx(self._file("unpruned-raw"), self._file("unpruned"), arrays[:1])
        done = simplify_onnx(self._file("pruned-raw"), self._file("pruned"), arrays)
        found = run_onnx(self._file("pruned"), arrays)
        expected = run_onnx(self._file("pruned-raw"), arrays)
        apart = max(compare(a, b).relative for a, b in zip(expected, found, strict=True))
        if apart > TOLERANCE:
            raise StageFailed(f"the simplified file differs by {apart:.2g} of the largest output")
        figures = {"simplify_relative": apart, "simplified": float(bool(done.tool))}
        return figures | {"nodes_before": float(done.nodes_before), "nodes": float(done.nodes_after)}

    def quantize(self) -> Figures:
        feeds = [{name: tensor[i : i + 1] for name, tensor in self.samples.items()} for i in range(SAMPLES)]
        arrays = [to_numpy(feed) for feed in self.feeds]
        quantize_onnx(self._file("pruned"), self._file("int8"), map(to_numpy, feeds))
        pairs = zip(run_onnx(self._file("pruned"), arrays), run_onnx(self._file("int8"), arrays), strict=True)
        # With random weights a cosine says nothing about accuracy; that the file runs is what is asked.
        return {"quantize_cosine": worst([compare(a, b) for a, b in pairs]).cosine}

    def benchmark(self) -> Figures:
        ids = ["unpruned", "pruned"]
        if self.report.hops["quantize"].ok:
            ids.append("int8")
        measured = measure(
            open_device("local"),
            [Candidate(id, self._file(id), "onnxruntime") for id in ids],
            baseline="unpruned",
            feed=to_numpy(self.model.example(self.batch_size)),
            plan=PLAN,
            workdir=self.folder,
        )
        p50_ms = {id: measured[id].latency_ms.p50 for id in ids}
        self.report.latency_ratio = p50_ms["pruned"] / p50_ms["unpruned"]
        return {f"{id}_p50_ms": value for id, value in p50_ms.items()}

    # ------------------------------------------------------------ checks

    def _file(self, name: str) -> Path:
        """Where the ONNX file of that name lies, in a folder with the weights that may lie beside it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder / "model.onnx"

    def _outputs(self, module: nn.Module, feed: Mapping[str, Tensor]) -> dict[str, Any]:
        with torch.no_grad():
            return to_numpy(self.model.call(module, feed))

    def _apart(self, reference: nn.Module, candidate: nn.Module, what: str) -> float:
        """The worst relative difference over both batch sizes. Raises StageFailed above the tolerance."""
        apart = max(
            compare(self._outputs(reference, f), self._outputs(candidate, f)).relative for f in self.feeds
        )
        if apart > TOLERANCE:
            raise StageFailed(f"the pruned model differs from {what} by {apart:.2g} of the largest output")
        return apart

    def _varying(self, module: nn.Module) -> set[str]:
        outputs = self._outputs(module, self.samples)
        return set(outputs) - set(constant_outputs(outputs))

    def _require_varying(self, module: nn.Module, expected: set[str] | None) -> set[str]:
        """Names of the outputs that depend on the input: one at least, or those ``expected``."""
        varying = self._varying(module)
        if not varying or (expected is not None and not varying >= expected):
            which = ", ".join(sorted((expected or set(self._outputs(module, self.samples))) - varying))
            raise StageFailed(
                f"output {which} does not vary with the input, so comparing it proves nothing; "
                "give integer inputs their range: NAME=SHAPE:int64:MAX"
            )
        return varying


_NO_TASK: Any = None  # magnitude asks neither data nor task
