"""What is said within an epoch: nothing of a short one, progress of a long one, and that a training waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploycompress.contracts import Event
from deploycompress.recovery import pace
from deploycompress.recovery.pace import MOVE_S, TELL_S, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def trained(clock: Clock, steps: int, reading_s: float, training_s: float) -> list[Event]:
    """What is said in one epoch of so many steps with 8 samples each."""
    said: list[Event] = []
    watched = Pace(said.append)

    def read() -> Iterator[int]:
        for number in range(steps):
            clock.now += reading_s
            yield number

    for number in watched.epoch(read()):
        clock.now += training_s
        watched.step(f"epoch 1/2, batch {number + 1}/{steps}", 8, (number + 1) / steps, {"loss": 0.5})
    return said


def test_a_short_epoch_says_nothing(clock: Clock) -> None:
    assert trained(clock, 10, 0.1, 0.8) == []


def test_a_long_one_moves_the_display_and_writes_a_line_now_and_then(clock: Clock) -> None:
    said = trained(clock, 700, 0.0, 1.0)
    lines = [event for event in said if event.figures]
    expected = [f"epoch 1/2, batch {n}/700" for n in (round(TELL_S), round(2 * TELL_S))]
    assert [event.message for event in lines] == expected
    assert lines[0].figures == {"loss": 0.5, "samples_per_s": 8.0} and lines[0].done == pytest.approx(
        300 / 700
    )
    moves = [event for event in said if not event.figures]
    assert len(moves) == 700 // MOVE_S - 2 and all(event.kind == "progress" for event in said)


@pytest.mark.parametrize(("reading_s", "training_s", "warned"), [(3.0, 1.0, True), (1.0, 3.0, False)])
def test_a_training_that_waits_for_its_data_says_so_once(
    clock: Clock, reading_s: float, training_s: float, warned: bool
) -> None:
    said = [event.message for event in trained(clock, 100, reading_s, training_s) if event.kind == "warning"]
    assert len(said) == warned and all(
        text.startswith("75% of the training's time goes into") for text in said
    )
