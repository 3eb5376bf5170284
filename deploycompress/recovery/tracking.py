"""The curves of a training, sent to the trackers that were asked for."""

from __future__ import annotations

from collections.abc import Mapping

from deploycompress.recovery.processes import Processes
from deploycompress.recovery.recipe import Recipe

EVERY = 10  # steps
PROJECT = "deploycompress"


class Tracking:
    """Does nothing, and imports nothing, where no tracker was asked for."""

    def __init__(self, recipe: Recipe, processes: Processes, rehearsal: bool) -> None:
        self._accelerator = processes.accelerator
        self._open = bool(recipe.track) and not rehearsal
        if self._open:
            settings = {k: str(v) for k, v in recipe.model_dump(mode="json", exclude={"track"}).items()}
            self._accelerator.init_trackers(PROJECT, config=settings)

    def step(self, figures: Mapping[str, float], step: int) -> None:
        if self._open and step % EVERY == 0:
            self._accelerator.log(dict(figures), step=step)

    def epoch(self, figures: Mapping[str, float], step: int) -> None:
        if self._open:
            self._accelerator.log({f"epoch_{k}": v for k, v in figures.items()}, step=step)

    def close(self) -> None:
        if self._open:
            self._accelerator.end_training()
