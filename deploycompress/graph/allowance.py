"""How much worse than its source a compressed file may be: what is configured, or what the accuracy gate leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import AccuracyGate, Gate
from deploycompress.contracts import MetricInfo, Note
from deploycompress.graph.evaluation import Evaluation


def allowance(
    configured: Quantity | None,
    gates: Mapping[str, Gate],
    spent: Callable[[], float | None],
) -> tuple[float | None, tuple[Note, ...]]:
    """Of the primary metric, in its unit; None where neither says it.

    ``spent``: what the source has lost already against the baseline, on the validation split; it is asked only where
    the gate decides. Nothing is left where that is all: then the note says so.
    """
    if configured is not None:
        return float(configured.value), ()
    gate = gates.get("accuracy")
    asked = gate.max_loss if isinstance(gate, AccuracyGate) else None
    if asked is None:
        return None, ()
    gone = max(0.0, spent() or 0.0)
    if gone < asked.value:
        return asked.value - gone, ()
    message = (
        f"on the validation split the source has already lost {gone:.4g} of the {asked} that the accuracy gate "
        "allows: nothing that loses more is wanted"
    )
    return 0.0, (Note("warning", message),)


def loss(primary: MetricInfo, before: Evaluation, after: Evaluation) -> float | None:
    """How much worse the primary metric is; None where it is not defined on these samples."""
    values = [of.metrics.get(primary.name) for of in (before, after)]
    if values[0] is None or values[1] is None:
        return None
    return values[0] - values[1] if primary.higher_is_better else values[1] - values[0]
