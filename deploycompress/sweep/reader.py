"""sweep.yaml -> what a sweep is, held against its base pipeline: all mistakes at once, each with its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.config import reader as pipelines
from deploycompress.config import references, yaml_file
from deploycompress.config.document import Document, KeyPath, in_order
from deploycompress.config.files import found, not_found, search_path
from deploycompress.config.schema import PipelineConfig
from deploycompress.config.validation import mistakes
from deploycompress.config.wording import listed, shown
from deploycompress.errors import ConfigError
from deploycompress.sweep import axes
from deploycompress.sweep.axes import Axis, Choice, Combination
from deploycompress.sweep.objectives import primary_of, read_objectives
from deploycompress.sweep.plan import Sweep, digest_of
from deploycompress.sweep.schema import Pruning, SweepConfig

MOST_COMBINATIONS = 10_000  # of a matrix
MOST_CHECKED = 300  # of a matrix, each as a whole; its values are checked one by one in any case
RECOVERING = ("train", "distill")


def read(path: Path, devices: Path | None = None) -> Sweep:
    """The sweep in the file at ``path``. Raises ConfigError with every mistake."""
    return _Reader(yaml_file.load(path), search_path(path), devices).read()


@dataclass
class _Reader:
    document: Document
    folders: tuple[Path, ...]
    devices: Path | None

    def read(self) -> Sweep:
        config = self.config()
        if config is None:
            raise ConfigError(in_order(self.document.problems))
        base, base_config = self.base(config)
        fixed = tuple(f"{path}={axes.text_of(value)}" for path, value in config.set.items())
        varied = self.axes(config)
        if base is None or base_config is None:
            raise ConfigError(in_order(self.document.problems))
        for path, text in zip(config.set, fixed, strict=True):
            self.try_out(base, [text], ("set", path))
        try:
            with_fixed = pipelines.read(base, fixed, devices=self.devices)
        except ConfigError as error:
            raise ConfigError(in_order(self.document.problems) or error.problems) from error
        changes = self.values(base, with_fixed, fixed, varied)
        every = config.matrix or config.method == "grid"
        matrix = self.combinations(base, fixed, varied, changes) if every else ()
        objectives = read_objectives(self.document, config.objectives, with_fixed)
        pruning = self.pruning(config, with_fixed)
        self.budget(config, varied)
        competitors = self.competitors(config)
        if self.document.problems:
            raise ConfigError(in_order(self.document.problems))
        sweep = Sweep(
            config.model_copy(update={"competitors": competitors}),
            base,
            with_fixed,
            self.devices,
            fixed,
            tuple(varied),
            tuple(objectives),
            pruning,
            tuple(matrix),
            self.document.place(("storage",)).value,
            digest_of(with_fixed, varied, objectives),
            primary_of(with_fixed, objectives),
        )
        return sweep

    # ------------------------------------------------------------ the file itself

    def config(self) -> SweepConfig | None:
        data = self.document.data
        if not isinstance(data, dict):
            self.document.report((), f"received {shown(data)}, expected keys such as pipeline: and search:")
            return None
        found = mistakes(SweepConfig, data)
        for mistake in found:
            self.document.report(mistake.path, mistake.message, key=mistake.key)
        if found:
            return None
        config = SweepConfig.model_validate(data)
        if bool(config.search) == bool(config.matrix):
            both = "search and matrix are" if config.search else "neither search nor matrix is"
            place: KeyPath = ("matrix",) if config.search else ()
            self.document.report(
                place, f"{both} given; expected one of them, with at least one path", key=True
            )
        if config.matrix and "method" in config.model_fields_set:
            self.document.report(
                ("method",), "a matrix runs every combination; there is nothing to search", key=True
            )
        return config

    def base(self, config: SweepConfig) -> tuple[Path | None, PipelineConfig | None]:
        path = found(config.pipeline, self.folders)
        if path is None:
            self.document.report(("pipeline",), not_found(config.pipeline, self.folders))
            return None, None
        try:
            return path, pipelines.read(path, devices=self.devices)
        except ConfigError as error:
            self.document.problems += error.problems
            return path, None

    def axes(self, config: SweepConfig) -> list[Axis]:
        block = "search" if config.search else "matrix"
        finite = "matrix" if block == "matrix" else "grid" if config.method == "grid" else ""
        paths = list(getattr(config, block))
        for path in paths:
            for other in (*(p for p in paths if p != path), *config.set):
                if path == other or path.startswith(f"{other}."):
                    message = f"{other!r} is set as well, and lies around it; vary one of them"
                    self.document.report((block, path), message, key=True)
        read = [axes.read_axis(self.document, (block, path), finite=finite) for path in paths]
        return [axis for axis in read if axis is not None]

    # ------------------------------------------------------------ against the base pipeline

    def values(
        self, base: Path, before: PipelineConfig, fixed: Sequence[str], varied: Sequence[Axis]
    ) -> dict[str, int]:
        """Check each value of each axis by itself; by path, the first step that any of them changes."""
        changes: dict[str, int] = {}
        for axis in varied:
            block = "search" if self.document.data.get("search") else "matrix"
            firsts = []
            for index, text in enumerate(axis.values):
                place = self.place((block, axis.path), axis, index)
                config = self.try_out(base, [*fixed, f"{axis.path}={text}"], place)
                if config is not None:
                    firsts.append(axes.first_changed(before, config))
            changes[axis.path] = min(firsts, default=0)
        return changes

    def place(self, block: KeyPath, axis: Axis, index: int) -> KeyPath:
        raw = self.document.value(block)
        if isinstance(raw, list):
            return (*block, index)
        if "choice" in raw:
            return (*block, "choice", index)
        return (*block, ("low", "high")[min(index, 1)]) if "step" not in raw else block

    def try_out(self, base: Path, texts: Sequence[str], place: KeyPath) -> PipelineConfig | None:
        """The base with these texts, of which the last one is new; what is wrong with it is noted at ``place``."""
        try:
            return pipelines.read(base, texts, devices=self.devices)
        except ConfigError as error:
            for problem in error.problems:
                own = problem.where == f"--set {texts[-1]}"
                about_path = own and problem.message.startswith(("unknown path", "unknown key"))
                where = problem.message if own else f"with {texts[-1]}: {problem}"
                at = place[:2] if about_path else place
                self.document.report(at, where, key=about_path)
            return None

    def combinations(
        self, base: Path, fixed: Sequence[str], varied: Sequence[Axis], changes: dict[str, int]
    ) -> list[Combination]:
        block = "search" if self.document.data.get("search") else "matrix"
        choices = [axis for axis in varied if isinstance(axis, Choice)]
        count = axes.size(choices) or 0
        if count > MOST_COMBINATIONS:
            message = f"{count} combinations; expected at most {MOST_COMBINATIONS}. A search with a budget tries some"
            self.document.report((block,), message, key=True)
            return []
        every = list(axes.combinations(axes.sharing_order(choices, changes)))
        alone = not self.document.problems and len(choices) > 1
        for values in every[:MOST_CHECKED] if alone else ():
            texts = [f"{path}={text}" for path, text in values.items()]
            try:
                pipelines.read(base, [*fixed, *texts], devices=self.devices)
            except ConfigError as error:
                self.document.report(
                    (block,), f"{listed(texts, last='and')} do not go together: {error.problems[0]}"
                )
                break
        return every

    def pruning(self, config: SweepConfig, base: PipelineConfig) -> Pruning | None:
        if config.pruning is None:
            return None
        steps = [step.id for step in base.stages if step.stage in RECOVERING]
        wanted = config.pruning.step
        if not steps or (wanted is not None and wanted not in steps):
            known = f"; expected {listed(steps, last='or')}" if steps else ""
            message = f"received {shown(wanted)}, no train or distill step of the base{known}"
            self.document.report(("pruning", "step") if wanted else ("pruning",), message, key=not wanted)
            return None
        return config.pruning.model_copy(update={"step": wanted or steps[-1]})

    def budget(self, config: SweepConfig, varied: Sequence[Axis]) -> None:
        if config.budget is None and config.search and config.method != "grid":
            message = f"the key 'budget' is missing: how much {config.method} may try, as 30 trials or 20 min"
            self.document.report((), message, key=True)

    def competitors(self, config: SweepConfig) -> tuple[Any, ...]:
        """Those with absolute paths, which are there."""
        names = [one.name for one in config.competitors]
        placed = []
        for index, one in enumerate(config.competitors):
            if one.name in names[:index]:
                self.document.report(("competitors", index, "name"), f"duplicate name {one.name!r}")
            weights = None if one.weights is None else found(one.weights, self.folders)
            if one.weights is not None and weights is None:
                self.document.report(("competitors", index, "weights"), not_found(one.weights, self.folders))
            if one.build is not None and (reason := references.locate(one.build, self.folders)) is not None:
                self.document.report(("competitors", index, "build"), f"{one.build!r}: {reason}")
            build = None if one.build is None else references.absolute(one.build, self.folders)
            placed.append(one.model_copy(update={"weights": weights, "build": build}))
        return tuple(placed)
