"""A shipped pipeline's whole chain at toy size, and what its steps say and read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.reader import read
from deploycompress.contracts import Data, Event, Loader, Split
from deploycompress.engine.context import open_context
from deploycompress.engine.plan import plan
from deploycompress.engine.rehearsal import rehearse
from deploycompress.measure.plan import MODES, Plan

BRIEF = Plan(4, 10.0, 20.0, 16, 200)  # of a measurement: the networks take microseconds
PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@dataclass
class Told:
    """What happened in each step: the splits it opened, and what it said."""

    splits: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    events: list[Event] = field(default_factory=list)
    since: set[str] = field(default_factory=set)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if event.message.endswith(" works"):  # the last word of a step
            self.splits[event.message.removesuffix(" works")] |= self.since
            self.since.clear()


@dataclass(frozen=True)
class Watched:
    """Data that tell which of their splits are opened."""

    data: Data
    told: Told

    @property
    def digest(self) -> str:
        return self.data.digest

    @property
    def interface(self) -> Mapping[str, Any]:
        return self.data.interface

    def loader(self, split: Split, epoch: int | None = None) -> Loader:
        self.told.since.add(split)
        return self.data.loader(split, epoch)


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Callable[[str, Callable[[Path], Path], Sequence[str]], tuple[Told, Path]]:
    """(name, what makes its data, changes) -> what was told, and the run's folder.

    Trained, and in this process: the engine around it is tested elsewhere.
    """

    def run(name: str, make: Callable[[Path], Path], changes: Sequence[str]) -> tuple[Told, Path]:
        folder = tmp_path_factory.mktemp(name)
        (folder / "data").mkdir()
        config = read(PIPELINES / f"{name}.yaml", [f"data.root={make(folder / 'data')}", *changes])
        told = Told()
        job = {"store": str(folder / "store"), "search_path": []}
        context = open_context(config, job, rehearsal=False, emit=told.emit, stopping=lambda: False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODES, "quick", BRIEF)
            rehearse(plan(config), folder / "run", replace(context, data=Watched(context.data, told)))
        return told, folder / "run"

    return run
