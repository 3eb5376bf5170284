"""One decision between artefacts: what is built, what of it is still right, and what of that is faster."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.artifact import Artifact
from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import SizeGate
from deploycompress.contracts import Event, Note, Outcome, RunContext
from deploycompress.devices.jobs import Candidate, open_device
from deploycompress.devices.results import Failed
from deploycompress.errors import DeployCompressError, Interrupted
from deploycompress.graph.allowance import allowance, loss
from deploycompress.graph.arbiter import telling
from deploycompress.graph.arbiter.building import build_apart, compiler_of, save_feeds
from deploycompress.graph.arbiter.checking import Checker
from deploycompress.graph.arbiter.choosing import Contender, choose
from deploycompress.graph.arbiter.entries import Entry, entries
from deploycompress.graph.arbiter.racing import Raced, race
from deploycompress.graph.arbiter.wanted import Wanted
from deploycompress.graph.calibration import calibration_feeds
from deploycompress.graph.compilers.recipe import Built
from deploycompress.graph.execution import fixed_batch_of, inspect_onnx, network_of
from deploycompress.graph.feeds import fixed_batch, take
from deploycompress.model.parity import to_numpy
from deploycompress.registry import RUNTIMES
from deploycompress.writing import copy

SOURCE = "the source"
BUILDING = 0.6  # share of the budget after which nothing more is built: the rest is for measuring
SHORTEST_BUILD_S = 30.0
DEFAULT_DROP = 0.01  # of a metric that is a share, where nothing says it


@dataclass(frozen=True)
class Terms:
    """What the candidates are held against."""

    wanted: Sequence[Wanted] | None  # None: all that can be built here
    threads: tuple[int, ...]
    budget: Quantity  # for building and measuring
    max_drop: Quantity | None  # of the primary metric on the validation split; None: what the gates say
    calibration: int | None  # samples; None: the whole calibration split


def largest_batch(built: Built) -> int | None:
    """Of an engine's profile; None where there is none."""
    shapes = list(built.details.get("profile", {}).values())
    return int(shapes[0][2][0]) if shapes else None


def _reference(sources: Mapping[str, Artifact], runtime: str) -> tuple[str, Artifact]:
    """What is measured as the source, and where: in the target's runtime, or where that opens none in ONNX Runtime."""
    opened = RUNTIMES.load(runtime).accepts
    kind = next((kind for kind in sources if kind in opened), None)
    return (runtime, sources[kind]) if kind else ("onnxruntime", sources["onnx"])


class Arbiter:
    """Builds, checks and races the candidates of one source."""

    def __init__(
        self,
        terms: Terms,
        sources: Mapping[str, Artifact],
        baseline: Artifact,
        folder: Path,
        context: RunContext,
    ) -> None:
        """``sources``: kind (onnx, checkpoint) -> the same network as that."""
        self._terms, self._sources, self._baseline = terms, sources, baseline
        self._folder, self._context = folder, context
        self._runtime, self._source = _reference(sources, context.target.runtime)
        self._batch = fixed_batch_of(self._source.main_file) or fixed_batch(context.model)
        self._device = open_device(context.target.device, context.devices)
        self._started = time.monotonic()
        self._files: dict[str, Built] = {}  # by the name of a recipe that makes it
        facts = self._device.facts()
        operators = inspect_onnx(sources["onnx"].main_file)["ops"] if "onnx" in sources else {}
        tried = entries(terms.wanted, context.target, terms.threads, facts, operators)
        named = terms.wanted is not None  # then the reason why one is not built is told
        self.entries = [e for e in tried if named or compiler_of(e.recipe.runtime).reads in sources]

    def decide(self, workdir: Path) -> Outcome:
        """What is kept, the best under the gates first, written to ``workdir``; and what became of the others."""
        target = self._context.target
        source = self._candidate(
            SOURCE, self._source.kind, self._source.main_file, "fp32", self._runtime, target.threads
        )
        checker = Checker(self._device, source, self._context)
        allowed, warnings = self._allowance(checker, source)
        calibration = self._calibration()
        for number, entry in enumerate(self.entries):
            self._tell(0.7 * number / len(self.entries), f"building and checking {entry.recipe.name}")
            self._build(entry, self._folder / str(number), calibration)
            self._check(entry, checker, allowed)
        raced, dropped = self._race(source)
        kept, refused = self._choose(raced)
        dropped.update(refused)
        told = tuple(telling.notes(self.entries, raced, kept, dropped))
        self._context.emit(Event("decision", " ".join(filter(None, (told[0].subject, told[0].message)))))
        metric = self._context.task.primary.name
        return Outcome(
            self._artifacts(kept, workdir),
            notes=(*warnings, *told),
            details={
                "candidates": telling.table(self.entries, raced, dropped, self._source_id, metric),
                "allowed_drop": allowed,
            },
        )

    # ---------------------------------------------------------------- the source, and what may be lost

    @property
    def _source_id(self) -> str:
        """The candidate that is the source itself, run as the target says."""
        plain = {"computes_in": "fp32"}
        same = [
            e
            for e in self.entries
            if e.recipe.name == f"{self._runtime}/fp32" and plain == {**plain, **e.recipe.options}
        ]
        return same[0].id(self._context.target.threads) if same else ""

    def _allowance(self, checker: Checker, source: Candidate) -> tuple[float | None, tuple[Note, ...]]:
        """How much worse than the source the primary metric may be, in its unit; None: nothing is asked."""
        primary = self._context.task.primary

        def spent() -> float | None:
            if self._baseline.sha256 == self._source.sha256:
                return 0.0
            runtime, given = _reference({self._baseline.kind: self._baseline}, self._context.target.runtime)
            before = self._candidate(
                "the baseline", given.kind, given.main_file, "fp32", runtime, source.threads
            )
            return loss(primary, Checker(self._device, before, self._context).source, checker.source)

        allowed, warnings = allowance(self._terms.max_drop, self._context.gates, spent)
        default = DEFAULT_DROP if primary.unit == "share" else None
        return (default if allowed is None else allowed), warnings

    # ---------------------------------------------------------------- the way of a candidate

    def _calibration(self) -> Path:
        """A folder with the samples, which every build reads."""
        folder, loader = self._folder / "calibration", self._context.data.loader("calibration")
        onnx = self._sources.get("onnx")
        feeds = calibration_feeds(loader, onnx.main_file, self._terms.calibration) if onnx else ()
        save_feeds(feeds, folder)
        return folder

    def _build(self, entry: Entry, place: Path, calibration: Path) -> None:
        recipe, left_s = entry.recipe, self._left_s(BUILDING)
        file = recipe.same_file or recipe.name
        if file in self._files:
            entry.built = self._files[file]
            return
        if left_s <= 0:
            entry.reason = f"not built: {self._late}"
            return
        reads = compiler_of(recipe.runtime).reads
        if reads not in self._sources:
            entry.reason = f"not built: it is made from an artefact of kind {reads}, and there is none here"
            return
        try:
            # One that does not end leaves half of the time to the others.
            entry.built = self._files[file] = build_apart(
                recipe,
                self._sources[reads].main_file,
                place,
                calibration,
                max(left_s / 2, SHORTEST_BUILD_S),
            )
        except DeployCompressError as error:
            entry.reason = f"not built: {error}"

    def _check(self, entry: Entry, checker: Checker, allowed: float | None) -> None:
        if entry.built is None:
            return
        recipe, primary = entry.recipe, self._context.task.primary
        if self._left_s(BUILDING) <= 0:
            entry.reason = f"not checked: {self._late}"
            return
        candidate = self._candidate(
            recipe.name,
            entry.built.kind,
            entry.built.path,
            recipe.precision,
            recipe.runtime,
            entry.threads[0],
            recipe.options,
        )
        try:
            entry.checked = checker.check(candidate, self._left_s(BUILDING), largest_batch(entry.built))
        except DeployCompressError as error:
            entry.reason = f"dropped: {error}"
            return
        lost, samples = entry.checked.loss, entry.checked.evaluation.samples
        if allowed is not None and lost is not None and lost > allowed:
            entry.reason = (
                f"dropped: it loses {lost:.4g} of {primary.name} on {samples} validation samples, "
                f"and may lose {allowed:.4g}"
            )

    def _race(self, source: Candidate) -> tuple[dict[str, Raced], dict[str, str]]:
        """Those that are right, measured; and why others were not, by id."""
        candidates = [
            self._candidate(
                id,
                e.built.kind,
                e.built.path,
                e.recipe.precision,
                e.recipe.runtime,
                threads,
                e.recipe.options,
            )
            for e in self.entries
            if e.built is not None and not e.reason
            for threads in e.threads
            if (id := e.id(threads)) != self._source_id
        ]
        batch = self._batch or self._context.target.batch_size
        feed = take(self._context.data.loader("val"), batch)
        found = race(
            self._device,
            source,
            candidates,
            to_numpy(feed),
            in_time=lambda: self._left_s() > 0,
            progress=lambda done, message: self._tell(0.7 + 0.3 * done, message),
        )
        dropped = {id: f"dropped: {of.message}" for id, of in found.items() if isinstance(of, Failed)}
        dropped.update({c.id: f"not measured: {self._late}" for c in candidates if c.id not in found})
        return {id: of for id, of in found.items() if not isinstance(of, Failed)}, dropped

    # ---------------------------------------------------------------- the choice

    def _choose(self, raced: Mapping[str, Raced]) -> tuple[list[str], dict[str, str]]:
        """Ids of what is kept, the best under the gates first; and why each of the others is not."""
        contenders = [Contender(SOURCE, 1.0, 0.0, 1.0)]
        for id, of in raced.items():
            checked = self._by_id[id][0].checked
            assert checked is not None
            contenders.append(Contender(id, 1 / of.speedup.value, checked.loss or 0.0, checked.parity.cosine))
        kept, refused = choose(contenders)
        refused.pop(SOURCE, None)  # it is there all the same
        names = [contender.name for contender in kept if contender.name != SOURCE]
        return sorted(names, key=lambda id: not self._fits(self._by_id[id][0], raced[id])), refused

    @property
    def _by_id(self) -> dict[str, tuple[Entry, int]]:
        return {entry.id(threads): (entry, threads) for entry in self.entries for threads in entry.threads}

    def _fits(self, entry: Entry, raced: Raced) -> bool:
        """Whether it keeps the gates on the size and on the memory, of which the baseline's is taken to be the source's."""
        size = sum(path.stat().st_size for path in entry.files)
        figures = {
            "artifact_size": (size, size / self._baseline.bytes),
            "peak_memory": (raced.peak_memory_bytes, raced.peak_memory),
        }
        return all(
            figure is None or limit is None or figure <= limit.value
            for name, of in figures.items()
            if isinstance(gate := self._context.gates.get(name), SizeGate)
            for limit, figure in zip((gate.max, gate.max_ratio), of, strict=True)
        )

    def _artifacts(self, kept: Sequence[str], workdir: Path) -> tuple[Artifact, ...]:
        made = []
        for id in kept:
            entry, threads = self._by_id[id]
            assert entry.built is not None
            place = workdir / id / entry.built.path.name
            place.parent.mkdir()
            copy(entry.built.path, place)
            details = {
                **self._sources[compiler_of(entry.recipe.runtime).reads].details,
                "recipe": entry.recipe.name,
                "runtime": entry.recipe.runtime,
                "provider": self._context.target.provider,
                "threads": threads,
                "options": dict(entry.recipe.options),
                **({"batch": self._batch} if self._batch else {}),
                **entry.built.details,
            }
            made.append(
                Artifact.of(id, entry.built.kind, place, precision=entry.recipe.precision, details=details)
            )
        return tuple(made)

    # ---------------------------------------------------------------- small things

    def _candidate(
        self,
        id: str,
        kind: str,
        path: Path,
        precision: str,
        runtime: str,
        threads: int,
        options: Mapping[str, Any] | None = None,
    ) -> Candidate:
        told = {**(options or {}), **network_of(kind, self._context.model)}
        return Candidate(id, path, runtime, self._context.target.provider, threads, precision, told)

    def _left_s(self, share: float = 1.0) -> float:
        """Of this share of the budget."""
        return share * self._terms.budget.value / 1000 - (time.monotonic() - self._started)

    @property
    def _late(self) -> str:
        return f"the budget of {self._terms.budget} was used up"

    def _tell(self, done: float, message: str) -> None:
        if self._context.stopping():
            raise Interrupted(signal.SIGTERM)
        self._context.emit(Event("progress", message, done=done))
