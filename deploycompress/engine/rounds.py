"""A repeat that backs off: rounds that cost too much accuracy are undone, and half of their step is tried.

What is decided depends on the records of the rounds alone, and these are kept: a run that goes on decides the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from deploycompress.config.schedule import halfway
from deploycompress.config.steps import scheduled
from deploycompress.contracts import MetricInfo
from deploycompress.engine.plan import Step
from deploycompress.errors import ConfigError
from deploycompress.report.figures import figure

ATTEMPTS = "abc"  # of one round: the whole step, half of it, a quarter; the first bears no letter

Round = tuple[Step, ...]


@dataclass(frozen=True)
class Repeat:
    """The rounds of one repeat, as planned; every step says how much may be lost."""

    rounds: tuple[Round, ...]

    @property
    def max_drop(self) -> float:
        return self.rounds[0][0].max_drop or 0.0


class Runner(Protocol):
    """What a run does with the attempts."""

    def attempt(self, step: Step, planned: Step) -> None:
        """Make ``step``, and let those that read ``planned`` read what it made."""
        ...

    def undo(self, attempt: Round, planned: Round, reason: str) -> None:
        """What the attempt made goes no further."""
        ...

    def settle(self, planned: Round, good: Round | None, source: str | None) -> None:
        """Rounds that are not made: those that read them read ``good``; where no round was, the step ``source``."""
        ...

    def validated(self, step_id: str | None, or_before: bool) -> float | None:
        """The primary metric on the validation split after a step, or after the last one before it that has it.

        None where the step, or none of them, tells it.
        """
        ...


def parts(steps: Sequence[Step]) -> Iterator[Step | Repeat]:
    """The steps in order, those of a repeat that backs off together."""
    rounds: list[list[Step]] = []
    for step in steps:
        number = _number(step)
        if rounds and number not in (len(rounds), len(rounds) + 1):
            yield Repeat(tuple(map(tuple, rounds)))
            rounds = []
        if number == 0:
            yield step
        elif number > len(rounds):
            rounds.append([step])
        else:
            rounds[-1].append(step)
    if rounds:
        yield Repeat(tuple(map(tuple, rounds)))


def make(repeat: Repeat, primary: MetricInfo, run: Runner) -> None:
    """Round by round, until one cannot be made good by taking less of it; the last good one is what goes on.

    A round is good when the primary metric after its last step is at most ``max_drop`` below what it was before the
    first round. Raises ConfigError where one of the two is not known.
    """
    source = repeat.rounds[0][0].source
    before = run.validated(source, or_before=True)
    if before is None:
        raise ConfigError(f"back_off: no step before {repeat.rounds[0][0].id} gives val_{primary.name}")
    good: Round | None = None
    for number, planned in enumerate(repeat.rounds):
        made = _best_attempt(planned, good, before, repeat.max_drop, primary, run)
        if made is None:
            for left in repeat.rounds[number:]:
                run.settle(left, good, source)
            return
        good = made


def _best_attempt(
    planned: Round, good: Round | None, before: float, max_drop: float, primary: MetricInfo, run: Runner
) -> Round | None:
    """The first attempt at a round that is good; None when the last one is not either."""
    attempt = planned
    for letter in ATTEMPTS:
        if letter != ATTEMPTS[0]:
            attempt = tuple(
                _halved(step, old, good, letter) for step, old in zip(planned, attempt, strict=True)
            )
        for step, static in zip(attempt, planned, strict=True):
            run.attempt(step, static)
        after = run.validated(attempt[-1].id, or_before=False)
        if after is None:
            raise ConfigError(f"back_off: {attempt[-1].id} gives no val_{primary.name} to judge the round by")
        drop = before - after if primary.higher_is_better else after - before
        if drop <= max_drop:
            return attempt
        unit = "points" if primary.unit == "share" else primary.unit
        reason = (
            f"undone at {_told(attempt)}: {primary.name} on the validation split is {figure(after, primary.unit)}, "
            f"{figure(drop, unit)} worse than {figure(before, primary.unit)} before the first round; allowed are "
            f"{figure(max_drop, unit)}"
        )
        goes_on = (
            f"{good[-1].id} at {_told(good)}" if good is not None else "the model before the first round"
        )
        last = letter == ATTEMPTS[-1]
        run.undo(
            attempt, planned, f"{reason}; {f'{goes_on} goes on' if last else 'half of the step is tried'}"
        )
    return None


def _halved(planned: Step, tried: Step, good: Round | None, letter: str) -> Step:
    """The step with targets half-way between those of the last good round and those that were tried."""
    config = _config(tried)
    reached: Mapping[str, Any] = {}
    if good is not None:
        base = _base(planned)
        reached = _config(next(step for step in good if _base(step) == base))
    values = {path: block[path[-1]] for path, block in scheduled(reached).items()}
    for path, block in scheduled(config).items():
        if block[path[-1]] is not None:
            block[path[-1]] = halfway(path[-1], values.get(path), block[path[-1]])
    stage = type(planned.stage)
    return replace(
        planned,
        id=f"{planned.id}{letter}",
        directory=f"{planned.directory}{letter}",
        stage=stage(stage.Config.model_validate(config)),
    )


def _told(steps: Round) -> str:
    """Every target of a round: ``macs 50%``."""
    targets = [
        f"{path[-1]} {block[path[-1]]}"
        for step in steps
        for path, block in scheduled(_config(step)).items()
        if block[path[-1]] is not None
    ]
    return ", ".join(targets)


def _config(step: Step) -> dict[str, Any]:
    document: dict[str, Any] = step.stage.config.model_dump(mode="json", by_alias=True)
    return document


def _number(step: Step) -> int:
    """The round of a step that may be undone, from 1; 0 of any other."""
    return int(step.id.rpartition("@")[2]) if step.max_drop is not None else 0


def _base(step: Step) -> str:
    return step.id.partition("@")[0]
