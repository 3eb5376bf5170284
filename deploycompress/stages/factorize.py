"""The factorize stage: layers become two of low rank, where that was measured to be faster on the target."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Ratio
from deploycompress.contracts import Event, Inputs, Note, Outcome, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, Interrupted, StageFailed
from deploycompress.measure.plan import Plan
from deploycompress.registry import RUNTIMES

if TYPE_CHECKING:
    from torch import nn

    from deploycompress.measure.measurement import Speedup
    from deploycompress.pruning.factorization import Candidate

FASTER = 1.03  # the whole interval of a layer's speed-up must be above: less is lost between layers again
TOLERANCE = 1e-4  # of max|y|: what was saved against what is loaded
PLAN = Plan(blocks=12, block_ms=40.0, warmup_ms=60.0, least_samples=48)


@dataclass(frozen=True)
class _Trial:
    """A layer and the speed-up of two factors in its place; None in a rehearsal, which measures nothing."""

    candidate: Candidate
    speedup: Speedup | None

    @property
    def faster(self) -> bool:
        return self.speedup is None or self.speedup.low > FASTER

    def to_json(self) -> dict[str, Any]:
        layer = {"layer": self.candidate.layer, "rank": self.candidate.rank, "factorized": self.faster}
        layer |= {"break_even_rank": self.candidate.break_even}
        if self.speedup is not None:
            layer |= {"speedup": self.speedup.value, "low": self.speedup.low, "high": self.speedup.high}
        return layer


class Factorize(Stage):
    """Linear layers and convolutions, by truncated SVD; each alone is measured against its two factors."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    libraries = ("torch", "onnx", "numpy")
    compresses = True

    class Config(StrictModel):
        rank: Ratio | None = Field(
            None, description="Share of the rank at which nothing is saved: 50%, which is the default"
        )
        energy: Ratio | None = Field(None, description="Share of the squared singular values that stays: 90%")
        exclude: tuple[str, ...] = Field((), description="Layers that stay, by pattern: head, layer4.*")

        @model_validator(mode="after")
        def _one_at_most(self) -> Any:
            if self.rank is not None and self.energy is not None:
                raise ValueError("rank and energy both say what the rank is; give one of them")
            return self

    def reads(self) -> frozenset[str]:
        return frozenset({"target"})

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        """The machine that layers are measured on, and the runtime."""
        from deploycompress.pruning.latency.bench import Place

        return {"place": Place.of(context.target, context.devices).key}

    def requires(self, context: RunContext) -> None:
        runtime = RUNTIMES.load(context.target.runtime)
        if "onnx" not in runtime.accepts:
            raise ConfigError(
                f"factorize measures layers as ONNX files, and target.runtime {context.target.runtime} opens "
                f"{', '.join(sorted(runtime.accepts))}; choose a runtime that opens onnx, or leave factorize out"
            )
        missing = runtime().missing()
        if missing:
            raise EnvironmentMissing(f"factorize: {context.target.runtime} cannot run here: {missing}")
        if find_spec("onnx") is None:
            raise EnvironmentMissing("factorize needs onnx; install it with: pip install onnx")

    def inexact(self, context: RunContext) -> str | None:
        return "layers are chosen by what was measured"

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.graph.feeds import take
        from deploycompress.model import checkpoint
        from deploycompress.model.build_name import build_of
        from deploycompress.pruning.costs import count
        from deploycompress.pruning.excluded import require_layers
        from deploycompress.pruning.factorization import apply, find_candidates
        from deploycompress.pruning.notes import left_whole
        from deploycompress.recovery.evaluation import evaluate

        module = checkpoint.load(inputs["source"][0].path, context.model)
        if self.config.exclude:  # of the whole network: an earlier step may have taken layers out
            whole_network = context.model.named(build_of(module)).build()
            require_layers(self.config.exclude, whole_network, "factorize.exclude")
        feed = take(context.data.loader("val"), context.target.batch_size)
        candidates, whole = find_candidates(
            module, lambda m: context.model.call(m, feed), self._rank, self.config.exclude
        )
        trials = _measure(module, candidates, context)
        ranks = {t.candidate.layer: t.candidate.rank for t in trials if t.faster}
        said = f"of {len(trials)} layers that could be two of low rank, {len(ranks)} measured faster as that"
        context.emit(Event("decision", said, {"layers_left_whole": float(len(whole))}))
        notes = (Note("decision", said), *_stay_dense(trials), *left_whole(whole))
        details = {"factorized": [trial.to_json() for trial in trials]}
        if not ranks:
            return Outcome(notes=notes, details=details)
        before = count(module, context.model)
        apply(module, ranks)
        checkpoint.save(module, workdir / "model", context.model)
        after = count(module, context.model)
        metrics = {"layers_factorized": float(len(ranks))}
        for name in ("macs", "params"):
            metrics |= {name: after[name], f"{name}_of_source": after[name] / max(1.0, before[name])}
        figures, _ = evaluate(module, context.model, context.data.loader("val"), context.task)
        metrics |= {f"val_{name}": value for name, value in figures.items()}
        context.emit(Event("decision", "factorised", metrics))
        return Outcome(
            (Artifact.of("", "checkpoint", workdir / "model"),), metrics, notes=notes, details=details
        )

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """The checkpoint, loaded again, gives what the source gives with the same layers factorised."""
        import torch

        from deploycompress.graph.feeds import parity_feeds
        from deploycompress.model import checkpoint
        from deploycompress.model.parity import compare, to_numpy, worst
        from deploycompress.pruning.factorization import apply

        if not outcome.artifacts:
            return {}
        expected = checkpoint.load(inputs["source"][0].path, context.model)
        apply(expected, {r["layer"]: r["rank"] for r in outcome.details["factorized"] if r["factorized"]})
        loaded = checkpoint.load(outcome.artifacts[0].path, context.model)
        with torch.no_grad():
            parity = worst(
                [
                    compare(*(to_numpy(context.model.call(m, feed)) for m in (expected, loaded)))
                    for feed in parity_feeds(context.model, context.data.loader("val"))
                ]
            )
        if parity.relative > TOLERANCE:
            raise StageFailed(
                f"the factorised model that was saved differs from what was made of its source by "
                f"{parity.relative:.2g} of the largest output, expected at most {TOLERANCE:g}; report this"
            )
        return {"checkpoint_relative": parity.relative}

    def _rank(self, layer: nn.Module) -> int:
        from deploycompress.pruning.factorization import rank_by_energy, rank_by_share

        if self.config.energy is not None:
            return rank_by_energy(layer, self.config.energy.value)
        return rank_by_share(layer, self.config.rank.value if self.config.rank is not None else 0.5)


# ---------------------------------------------------------------- measuring


def _measure(module: nn.Module, candidates: Sequence[Candidate], context: RunContext) -> list[_Trial]:
    """Each candidate against its two factors; layers of the same sizes are measured once."""
    if context.rehearsal:
        return [_Trial(candidate, None) for candidate in candidates]
    known: dict[str, Speedup] = {}
    trials = []
    for number, candidate in enumerate(candidates):
        if context.stopping():
            raise Interrupted(signal.SIGTERM)
        layer = module.get_submodule(candidate.layer)
        sizes = f"{layer} {candidate.shape} {candidate.rank}"  # a layer's text has all of its settings
        if sizes not in known:
            done = number / len(candidates)
            context.emit(Event("progress", f"measuring {candidate.layer}", done=done))
            known[sizes] = _speedup(layer, candidate, context)
        trials.append(_Trial(candidate, known[sizes]))
    return trials


def _speedup(layer: nn.Module, candidate: Candidate, context: RunContext) -> Speedup:
    """Of two factors over the layer, on files of nothing else, interleaved."""
    import numpy as np

    from deploycompress.devices.jobs import Candidate as Measured
    from deploycompress.devices.jobs import measure, open_device
    from deploycompress.graph.layer_file import INPUT, write_layers
    from deploycompress.graph.quantization import quantize_onnx
    from deploycompress.pruning.factorization import factorized

    target, device = context.target, open_device(context.target.device, context.devices)
    feed = {INPUT: np.random.default_rng(0).standard_normal(candidate.shape, dtype=np.float32)}
    with tempfile.TemporaryDirectory(prefix="deploycompress-layer-") as folder:
        files = {"dense": [layer], "factorized": list(factorized(layer, candidate.rank))}
        measured = []
        for name, layers in files.items():
            path = Path(folder) / name / "model.onnx"
            write_layers(layers, candidate.shape, path)
            if target.precision == "int8":
                path = path.parent / "int8.onnx"
                quantize_onnx(path.with_name("model.onnx"), path, [feed], facts=device.facts())
            measured.append(
                Measured(name, path, target.runtime, target.provider, target.threads, target.precision)
            )
        found = measure(
            device,
            measured,
            baseline="dense",
            feed=feed,
            plan=PLAN,
            workdir=Path(folder),
        )
    speedup = found["factorized"].speedup
    assert speedup is not None
    return speedup


# ---------------------------------------------------------------- what is told


def _stay_dense(trials: Sequence[_Trial]) -> Iterator[Note]:
    for trial in trials:
        if not trial.faster and (s := trial.speedup) is not None:
            message = (
                f"stays dense: its two factors of rank {trial.candidate.rank} are {s.value:.2f}x as fast "
                f"({s.low:.2f} to {s.high:.2f}), expected above {FASTER}"
            )
            yield Note("left_whole", message, trial.candidate.layer)
