"""Whether the steps fit together: what each reads, what the steps before it make, what the gates need."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploycompress.config.document import Document, KeyPath
from deploycompress.config.schema import Gate, ModelConfig, OpenConfig, StepConfig, TargetConfig
from deploycompress.config.wording import listed, nearest
from deploycompress.registry import RUNTIMES, STAGES

Kinds = frozenset[str] | None  # None: not known, because the stage was not imported

MODEL = "model"  # the planner's first step: the user's model with its weights
FILE_KINDS = {".onnx": "onnx", ".xml": "openvino", ".engine": "engine", ".plan": "engine", ".zip": "package"}


@dataclass(frozen=True)
class Hop:
    """One step in the flow: which steps, or file, each of its inputs reads, and which kinds it makes."""

    id: str
    stage: str
    sources: Mapping[str, tuple[str, ...]]
    makes: Kinds  # empty: passes its source on
    faults: tuple[tuple[KeyPath, str], ...] = ()  # place within the step, message


def check(
    document: Document,
    steps: Sequence[StepConfig | None],
    model: ModelConfig | None,
    gates: Collection[str] | Mapping[str, Gate],
    target: TargetConfig | None = None,
) -> None:
    """Note in ``document`` what does not fit; a None among ``steps`` has mistakes of its own already."""
    ids = [step["id"] for step in _raw(document)]
    reported = set()  # a step that is repeated has its fault once, although the ids in it differ
    for index, hop in enumerate(flow(steps, ids, target)):
        for fault, message in hop.faults:
            path: KeyPath = ("stages", index, *fault)
            if document.place(path) not in reported:
                document.report(path, message, key=not fault)
            reported.add(document.place(path))
    names = [step["stage"] for step in _raw(document)]
    open_ended = any(
        name not in STAGES for name in names
    )  # a user's stage may do anything; or a misspelt one
    if model is not None and model.weights is None and names and not open_ended and "train" not in names:
        at: KeyPath = ("model", "weights") if "weights" in document.data["model"] else ("model",)
        message = "no weights are given and no train stage makes them; give a file, or begin with `- train`"
        document.report(at, message, key=True)
    for gate in gates:
        needed = "pack" if gate == "packed_size" else "benchmark"
        if names and not open_ended and needed not in names:
            message = f"nothing produces {gate}: it comes from a {needed} stage; add `- {needed}` to stages"
            document.report(("gates", gate), message, key=True)
    if isinstance(gates, Mapping) and "benchmark" in names:
        _check_p99(document, steps, gates.get("latency_p99"))


def _check_p99(document: Document, steps: Sequence[StepConfig | None], gate: Gate | None) -> None:
    """What can never pass is a mistake, unless that is only to warn, or is measured for longer then."""
    modes = {getattr(step.config, "mode", "full") for step in steps if step and step.stage == "benchmark"}
    if gate is not None and modes == {"quick"} and gate.on_inconclusive == "fail":
        message = (
            "a p99 never passes in mode quick, which takes too few samples; write `- benchmark: {mode: full}`"
        )
        document.report(("gates", "latency_p99"), message, key=True)


def flow(
    steps: Sequence[StepConfig | None], ids: Sequence[str], target: TargetConfig | None = None
) -> Iterator[Hop]:
    """The steps one after the other, each with its sources and what is wrong with them."""
    so_far = _SoFar(ids, target or TargetConfig())
    for step, id in zip(steps, ids, strict=True):
        hop = so_far.hop(step) if step is not None else Hop(id, "", {}, None)
        so_far.add(hop)
        yield hop


@dataclass
class _SoFar:
    """What the steps up to here have made."""

    ids: Sequence[str]  # of every step, later ones too
    target: TargetConfig
    made: dict[str, Kinds] = field(default_factory=lambda: {MODEL: frozenset({"checkpoint"})})
    passed: set[str] = field(default_factory=set)  # steps that make nothing new
    last: str = MODEL

    def add(self, hop: Hop) -> None:
        if hop.makes is None or hop.makes:
            self.made[hop.id], self.last = hop.makes, hop.id
        else:
            source = hop.sources.get("source", ())
            self.made[hop.id] = self.made.get(source[-1]) if source else None
            self.passed.add(hop.id)

    def hop(self, step: StepConfig) -> Hop:
        stage = None if isinstance(step.config, OpenConfig) else STAGES.load(step.stage)(step.config)
        refs: dict[str, str] = dict(stage.inputs()) if stage is not None else {"source": "last"}
        faults: list[tuple[KeyPath, str]] = []
        if step.source is not None and "last" not in refs.values():
            faults.append((("options", "from"), f"{step.stage} reads {refs['source']}; leave `from` out"))
        sources = {}
        for name, ref in refs.items():
            chosen = ref == "last" and step.source is not None
            within = tuple(int(part) if part.isdigit() else part for part in name.split("."))
            place: KeyPath = ("options", "from") if chosen else ("config", *within) if ref != "last" else ()
            ref = step.source if chosen and step.source is not None else ref
            problem = self._unknown(ref, step, chosen)
            sources[name] = self._resolve(ref, stage)
            # A file beside the source may be of another kind: an ONNX file that teaches.
            if problem is None and stage is not None and (name == "source" or not os.path.isabs(ref)):
                key = "from" if name == "source" else str(within[0])
                problem = self._misfit(stage, step, ref, sources[name], key)
                place = place if chosen or name != "source" else ()
            if problem is not None:
                faults.append((place, problem))
        return Hop(
            step.id, step.stage, sources, None if stage is None else stage.makes(self.target), tuple(faults)
        )

    def _resolve(self, ref: str, stage: Any) -> tuple[str, ...]:
        if ref == "all":
            made = ((id, kinds) for id, kinds in self.made.items() if id not in self.passed)
            opens = None if stage is None else stage.opens(self.target)
            return tuple(id for id, kinds in made if opens is None or kinds is None or kinds & opens)
        return (self.last,) if ref == "last" else (ref,)

    def _kinds(self, ref: str) -> Kinds:
        """What the input ``ref`` may be. A step's id, or a file."""
        if ref in ("original", "checkpoint"):
            return frozenset({"checkpoint"})
        if ref == "baseline":
            own = self.target.runtime in RUNTIMES and RUNTIMES.load(self.target.runtime).accepts
            return frozenset({"onnx", "checkpoint"} if own == {"checkpoint"} else {"onnx"})
        if ref in self.made:
            return self.made[ref]
        return frozenset({FILE_KINDS.get(Path(ref).suffix, "checkpoint")})

    def _unknown(self, ref: str, step: StepConfig, chosen: bool) -> str | None:
        """Why ``ref`` names nothing that is there when the step runs."""
        if ref == "all" and chosen:
            return "a step reads one source; give the id of one step"
        if ref in ("last", "original", "baseline", "all") or ref in self.made:
            return None
        if ref == "checkpoint" and not chosen:
            return None
        if ref == step.id:
            return f"{ref!r} is this step itself; give an earlier one"
        if ref in self.ids:
            return f"{ref!r} is a later step; give an earlier one: {listed(self.made)}"
        if os.path.isabs(ref) and os.path.exists(ref):
            return None
        known = [*self.made, "original", "baseline"]
        close = nearest(ref, known)
        question = f"did you mean {close!r}? Known" if close else "known"
        return f"unknown step {ref!r}; {question}: {listed(known)}, or a file"

    def _misfit(
        self, stage: Any, step: StepConfig, ref: str, sources: tuple[str, ...], key: str
    ) -> str | None:
        """Why the stage cannot read what ``key`` names: the kinds do not fit."""
        kinds = [self._kinds(source) for source in sources]
        opens = stage.opens(self.target) if key == "from" else stage.accepts
        if any(kind is None or kind & opens for kind in kinds):
            return None
        accepts = listed(sorted(opens), last="or")
        if ref == "all":
            return f"{step.stage} reads {accepts}, and no step before it makes one{_maker(opens)}"
        makes = listed(sorted(kinds[0] or ()), last="or")
        what = f"{sources[0]} makes {makes}" if sources[0] in self.made else f"{sources[0]} is {makes}"
        fitting = [id for id, made in self.made.items() if made and made & opens and id not in self.passed]
        remedy = _maker(opens)
        if fitting:
            remedy = f"; name a step before it that does with `{key}: {fitting[-1]}`"
        return f"{step.stage} reads {accepts}, but {what}{remedy}"


def _maker(kinds: frozenset[str]) -> str:
    """Which built-in stage makes one of ``kinds`` from a checkpoint."""
    for name in STAGES:
        stage = STAGES.load(name)
        if stage.produces & kinds and "checkpoint" in stage.accepts and "checkpoint" not in stage.produces:
            return f"; put `- {name}` before it"
    return ""


def _raw(document: Document) -> list[dict[str, Any]]:
    steps = document.data.get("stages")
    return steps if isinstance(steps, list) else []
