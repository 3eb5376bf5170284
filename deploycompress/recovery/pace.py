"""How a training goes within an epoch: how far it is, how fast, and whether it waits for its data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from deploycompress.contracts import Event

MOVE_S = 10.0  # between two moves of a live display
TELL_S = 300.0  # between two lines of a log
ENOUGH_S = 60.0  # of training, to say that it waits
MUCH = 0.5  # of the time
WAITS = (
    "{share:.0%} of the training's time goes into reading data: keep decoded data (data.in_memory, arrays), or "
    "read with workers (a DataLoader of your own with num_workers is read as it is)"
)

T = TypeVar("T")


class Pace:
    """Says nothing of epochs that are shorter than ``MOVE_S``; what it says changes nothing of the training."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._spent_s = self._waited_s = 0.0
        self._warned = False
        self._began = self._told = self._moved = time.monotonic()
        self._samples = 0

    def epoch(self, groups: Iterable[T]) -> Iterator[T]:
        """What an epoch trains on; the time until each is there is waited for, the rest is training."""
        self._began = self._told = self._moved = time.monotonic()
        self._samples = 0
        rest = iter(groups)
        while True:
            asked = time.monotonic()
            group = next(rest, None)
            given = time.monotonic()
            if group is None:
                return
            yield group
            self._waited_s += given - asked
            self._spent_s += time.monotonic() - asked

    def step(self, where: str, samples: int, done: float, figures: Mapping[str, float]) -> None:
        """A step with so many samples is taken; ``done``: the share of the whole training."""
        now = time.monotonic()
        self._samples += samples
        if now - self._told >= TELL_S:
            speed = {"samples_per_s": round(self._samples / (now - self._began), 1)}
            self._emit(Event("progress", where, {**figures, **speed}, done))
            self._told = self._moved = now
        elif now - self._moved >= MOVE_S:
            self._emit(Event("progress", where, done=done))
            self._moved = now
        if not self._warned and self._spent_s > ENOUGH_S and self._waited_s > MUCH * self._spent_s:
            self._emit(Event("warning", WAITS.format(share=self._waited_s / self._spent_s)))
            self._warned = True
