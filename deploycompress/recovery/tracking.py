"""The curves of a training, sent to the trackers that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploycompress.contracts import Event
from deploycompress.errors import EnvironmentMissing
from deploycompress.recovery.processes import Processes
from deploycompress.recovery.recipe import Recipe

EVERY = 10  # steps
PROJECT = "deploycompress"


class Tracking:
    """Does nothing, and imports nothing, where no tracker was asked for.

    Raises EnvironmentMissing where a tracker does not start. One that fails later is told of, and is sent nothing more:
    no training depends on it.
    """

    def __init__(
        self, recipe: Recipe, processes: Processes, emit: Callable[[Event], None], rehearsal: bool
    ) -> None:
        self._emit = emit
        self._trackers = [] if rehearsal or not recipe.track else _started(recipe, processes.accelerator)

    def step(self, figures: Mapping[str, float], step: int) -> None:
        if step % EVERY == 0:
            self._send(lambda tracker: tracker.log(dict(figures), step=step))

    def epoch(self, figures: Mapping[str, float], step: int) -> None:
        named = {f"epoch_{name}": value for name, value in figures.items()}
        self._send(lambda tracker: tracker.log(named, step=step))

    def close(self) -> None:
        # Accelerator.end_training ends the processes' connection too, which the stage still needs.
        self._send(lambda tracker: tracker.finish())
        self._trackers = []

    def _send(self, send: Callable[[Any], None]) -> None:
        for tracker in list(self._trackers):
            try:
                send(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                message = f"track: {tracker.name} fails, and is sent nothing more: {_reason(error)}"
                self._emit(Event("warning", message))


def _started(recipe: Recipe, accelerator: Any) -> list[Any]:
    """Accelerate's trackers, with the recipe as the settings of the run."""
    settings = {k: str(v) for k, v in recipe.model_dump(mode="json", exclude={"track"}).items()}
    own: dict[str, Any] = {}
    try:
        if "wandb" in recipe.track:  # else it writes into the working directory
            Path(recipe.track_folder).mkdir(parents=True, exist_ok=True)
            own["wandb"] = {"dir": recipe.track_folder}
        accelerator.init_trackers(PROJECT, config=settings, init_kwargs=own)
    except Exception as error:
        raise EnvironmentMissing(
            f"track: {', '.join(recipe.track)} could not be started: {_reason(error)}; log in, say where to "
            "(WANDB_MODE=offline, MLFLOW_TRACKING_URI), or leave it out"
        ) from error
    return list(accelerator.trackers)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
