"""How the target of a repeated step goes to its final value, round by round."""

from __future__ import annotations

from typing import Any, Literal

from deploycompress.config.quantities import Quantity

Schedule = Literal["linear", "exponential"]

REMOVED = ("ratio", "sparsity")  # keys that say what goes, and not what remains


def remaining(final: float, round: int, rounds: int, schedule: Schedule) -> float:
    """The share that remains after ``round`` of ``rounds``, from 1 down to ``final``.

    Linear takes the same share off in every round; exponential the same *ratio*, small steps at the end:
    B_s = B^a * T^(1-a) with a = s/S, as HALP sets its latency budget (Shen et al., "Structural Pruning via
    Latency-Saliency Knapsack", section 3.3), for T = 1.
    """
    done = round / rounds
    return float(final**done) if schedule == "exponential" else 1 - (1 - final) * done


def of_round(key: str, value: Any, round: int, rounds: int, schedule: Schedule) -> Any:
    """The target ``{key: value}`` of one round; ``value`` itself in the last one.

    ``ratio`` and ``sparsity`` are the share of the unpruned model's channels, or weights, that is removed, every
    other key the share of the unpruned model that remains. A value that is no quantity is left for validation to
    report. Raises ValueError where the unpruned model's figure would have to be known.
    """
    if round == rounds:
        return value
    quantity = _share(key, value, "follow a schedule")
    if quantity is None:
        return value
    removed = key in REMOVED
    left = remaining(1 - quantity.value if removed else quantity.value, round, rounds, schedule)
    return _written(1 - left if removed else left, quantity)


def halfway(key: str, good: Any, tried: Any) -> Any:
    """Half-way from the target ``{key: good}`` (None: the unpruned model) to ``{key: tried}``; as for ``of_round``."""
    quantity = _share(key, tried, "be halved")
    if quantity is None:
        return tried
    reached = None if good is None else _share(key, good, "be halved")
    start = 0.0 if key in REMOVED else 1.0
    return _written(((reached.value if reached else start) + quantity.value) / 2, quantity)


def _share(key: str, value: Any, what: str) -> Quantity | None:
    """The share that a target names; None where validation has to say what is wrong. Raises ValueError."""
    try:
        quantity = Quantity.parse(value, "percent", "number", "time", "bytes", "count")
    except ValueError:
        return None
    if quantity.dimension != "percent" and not (key in REMOVED and quantity.dimension == "number"):
        raise ValueError(
            f"received {value}: an absolute target cannot {what}; give the share that remains, as 50%"
        )
    return quantity if 0 < quantity.value <= 1 else None


def _written(share: float, like: Quantity) -> str | float:
    return f"{100 * share:.8g}%" if like.dimension == "percent" else float(f"{share:.10g}")
