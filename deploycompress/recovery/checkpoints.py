"""Checkpoints of an unfinished training on the disk: written aside, found again whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deploycompress.artifact import digest_file, digest_json, publish, read_json, remove, write_json
from deploycompress.errors import EnvironmentMissing
from deploycompress.writing import clear, make_folder, saving

TENSORS, STATE = "tensors.safetensors", "state.json"
KEPT = 2  # the last is of no use where the disk has damaged it
ASIDE = ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what is not a tensor, as JSON; ``step``: optimiser steps done."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in ``folder``, one a subfolder, which appears by one rename; none without a folder.

    ``warn`` is told of each that is found damaged; it is taken away, and the one before is used. Of several
    processes that share the folder one ``writes``. ``training`` is whose they are: those of another are not used.
    """

    def __init__(
        self, folder: Path | None, warn: Callable[[str], None], writes: bool = True, training: str = ""
    ) -> None:
        self._folder, self._warn, self._writes, self._training = folder, warn, writes, training
        if folder is not None and writes:
            make_folder(folder)
            for left in folder.glob(f"{ASIDE}*"):  # of a process that was killed; nobody else writes here
                clear(left)

    def __bool__(self) -> bool:
        return self._folder is not None

    def save(self, checkpoint: Checkpoint) -> None:
        """Put it beside the last one, and take those before away. Raises EnvironmentMissing without room."""
        if self._folder is None or not self._writes:
            return
        aside = self._folder / f"{ASIDE}{uuid.uuid4().hex}"
        make_folder(aside)
        try:
            # Clones: safetensors refuses tensors that share memory.
            kept = {n: t.detach().cpu().contiguous().clone() for n, t in checkpoint.tensors.items()}
            with saving(aside / TENSORS) as place:
                save_file(kept, place)
            record = {
                "schema": 1,
                "training": self._training,
                "step": checkpoint.step,
                "state": dict(checkpoint.state),
                "tensors": {"sha256": digest_file(aside / TENSORS), "names": sorted(kept)},
            }
            write_json(aside / STATE, record | {"seal": digest_json(record)})
            destination = self._folder / f"step-{checkpoint.step:010d}"
            if destination.exists():
                remove(destination)
            publish(aside, destination)
        except SafetensorError as error:
            raise EnvironmentMissing(
                f"the checkpoint cannot be written to {self._folder}: {error}; free some space"
            ) from error
        finally:
            clear(aside)
        for old in self._found()[KEPT:]:
            remove(old)

    def forget_after(self, step: int) -> None:
        """Take those of later steps away: training went back."""
        for place in self._found():
            if _step(place) > step and self._writes:
                remove(place)

    def steps(self) -> list[int]:
        """The steps at which there is an undamaged one, the latest first."""
        return [step for step in map(_step, self._found()) if self._checked(step) is not None]

    def load(self, step: int) -> Checkpoint | None:
        """The one of that step; None where there is none that is whole."""
        record = self._checked(step)
        if record is None or self._folder is None:
            return None
        tensors = load_file(self._folder / f"step-{step:010d}" / TENSORS)
        return Checkpoint(step, tensors, record["state"])

    def newest(self) -> Checkpoint | None:
        steps = self.steps()
        return self.load(steps[0]) if steps else None

    def _found(self) -> list[Path]:
        return [] if self._folder is None else sorted(self._folder.glob("step-*"), reverse=True)

    def _checked(self, step: int) -> Mapping[str, Any] | None:
        """Its record when every byte is as it was written; one that is not goes away."""
        if self._folder is None:
            return None
        place = self._folder / f"step-{step:010d}"
        if not place.exists():
            return None
        reason = None
        try:
            record: dict[str, Any] = read_json(place / STATE)
            seal = record.pop("seal")
            if seal != digest_json(record) or record["schema"] != 1:
                reason = "its record was changed"
            elif (record["training"], record["step"]) != (self._training, step):
                reason = "it is of another step or training"
            elif digest_file(place / TENSORS) != record["tensors"]["sha256"]:
                reason = "its tensors are not those that were written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it cannot be read ({type(error).__name__})"
        if reason is None:
            return record
        if self._writes:
            self._warn(f"the checkpoint of step {step} is damaged: {reason}; the one before is used")
            remove(place)
        return None


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))
