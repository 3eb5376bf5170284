"""Gates that ask for it where they could not be decided: the benchmark is run again, longer each time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from deploycompress.config.schema import Gate
from deploycompress.contracts import Event
from deploycompress.engine.plan import Step

STAGE = "benchmark"
LONGER = 2  # times as long as before
FULL = {"latency_p99", "energy"}


class Runner(Protocol):
    """What a run does for it."""

    def judged(self) -> Sequence[Mapping[str, Any]]:
        """The verdicts of the gates, as the report has them; none where no measurement could decide one."""
        ...

    def seconds(self, step_id: str) -> tuple[float, float]:
        """What the step took the last time, and what of it was measuring, which a longer one takes more of."""
        ...

    def measure_again(self, step: Step) -> None:
        """Make ``step`` in the place of the one with its id."""
        ...

    def tell(self, event: Event) -> None: ...


def extend(steps: Sequence[Step], gates: Mapping[str, Gate], runner: Runner) -> None:
    """Measure until no gate that asks for more is undecided, or the benchmark's ``extend_up_to`` is used up."""
    step = next((s for s in reversed(steps) if s.stage_name == STAGE), None)
    if step is None or not any(gate.on_inconclusive == "extend" for gate in gates.values()):
        return
    budget_s = step.stage.config.extend_up_to.value / 1000
    started = time.monotonic()
    while open_ones := _undecided(runner.judged(), gates):
        longer, named = _longer(step, open_ones), ", ".join(open_ones)
        before, config = step.stage.config, longer.stage.config
        spent_s = time.monotonic() - started
        took_s, measuring_s = runner.seconds(step.id)
        needed_s = took_s + measuring_s * (config.nominal_s / before.nominal_s - 1)
        if spent_s + needed_s > budget_s:
            reason = (
                f"{named} could not be decided: a longer measurement would take {needed_s:.0f} s, and of extend_up_to, "
                f"{before.extend_up_to}, {max(0.0, budget_s - spent_s):.0f} s are left"
            )
            runner.tell(Event("warning", reason, step=step.id))
            return
        reason = (
            f"{named} could not be decided; measuring again, mode {config.mode}, {config.times} times as long"
        )
        runner.tell(Event("decision", reason, step=step.id))
        runner.measure_again(longer)
        step = longer


def _undecided(verdicts: Sequence[Mapping[str, Any]], gates: Mapping[str, Gate]) -> list[str]:
    return [
        v["metric"]
        for v in verdicts
        if v["verdict"] == "inconclusive"
        and v["metric"] in gates
        and gates[v["metric"]].on_inconclusive == "extend"
    ]


def _longer(step: Step, open_ones: Sequence[str]) -> Step:
    """The same benchmark for longer; what ``FULL`` names is decided by the mode full alone."""
    config = step.stage.config
    if config.mode == "quick" and FULL & set(open_ones):
        changed = config.model_copy(update={"mode": "full"})
    else:
        changed = config.model_copy(update={"times": LONGER * config.times})
    return replace(step, stage=type(step.stage)(changed))
