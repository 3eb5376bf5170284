"""The truth loop: plans are applied, exported and measured until one is just within the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploycompress.pruning.latency.prediction import Widths
from deploycompress.pruning.latency.whole import WholeModels

ROUNDS = 5
SPREAD = (0.95, 1.0, 1.05)  # of the corrected budget: three plans a round, so that one of them is near
NARROWER_SPREAD = (0.985, 1.0, 1.015)  # once the correction is known
CLOSE = 0.97  # of the target, that a plan has to reach: what is below gave away accuracy for nothing
AIM = 0.985  # of the target, in the middle
CLOSING = (0.995, 1.0, 1.005)  # of the target itself: on a coarse grid the better plan may lie there
BLOCKS, BLOCK_MS = 8, 60.0
CONFIRMING_BLOCKS, CONFIRMING_BLOCK_MS = 12, 120.0

Allocate = Callable[
    [float], Widths | None
]  # a limit on the predicted latency in ms -> a plan, None where there is none


@dataclass(frozen=True)
class Tried:
    """One plan that was measured."""

    widths: Widths
    predicted_ms: float
    latency_ms: float


@dataclass(frozen=True)
class Settled:
    """The plan that is taken; ``tried`` are all that were measured, in order."""

    chosen: Tried
    reached: bool
    unpruned_ms: float
    tried: tuple[Tried, ...]


def settle(
    whole: WholeModels,
    allocate: Allocate,
    *,
    predict: Callable[[Widths], float],
    loss: Callable[[Widths], float],
    smallest: Widths,
    limit_ms: Callable[[], float],
    say: Callable[[str, Mapping[str, float]], None] = lambda message, figures: None,
) -> Settled:
    """Correct the predicted budget until the measured latency is at most ``limit_ms`` and at least 97 % of it.

    ``limit_ms``: asked again after each measurement, since a share is of the unpruned model's latency. Of the
    plans within the limit the one that loses least is taken; one that is slower than a wider one never is.
    ``allocate`` may lose what it likes: only what was measured counts.
    """
    tried: list[Tried] = []
    correction = 1.0  # measured over predicted
    for round in range(ROUNDS):
        spread = SPREAD if round == 0 else NARROWER_SPREAD
        plans = _new([allocate(share * AIM * limit_ms() / correction) for share in spread], tried)
        if round == 0 and not plans:
            plans = [smallest]
        if not plans:
            break  # the grid has nothing nearer
        tried += _measure(whole, plans, predict, BLOCKS, BLOCK_MS)
        nearest = min(tried, key=lambda t: abs(t.latency_ms - AIM * limit_ms()))
        correction = nearest.latency_ms / nearest.predicted_ms
        say(
            "plans measured", {"round": round + 1.0, "limit_ms": limit_ms(), "nearest_ms": nearest.latency_ms}
        )
        if CLOSE * limit_ms() <= nearest.latency_ms <= limit_ms():
            confirmed = _measure(whole, [nearest.widths], predict, CONFIRMING_BLOCKS, CONFIRMING_BLOCK_MS)[0]
            tried[tried.index(nearest)] = confirmed
            correction = confirmed.latency_ms / confirmed.predicted_ms
            if CLOSE * limit_ms() <= confirmed.latency_ms <= limit_ms():
                break
    last = _new([allocate(share * limit_ms() / correction) for share in CLOSING], tried)
    if last:
        tried += _measure(whole, last, predict, CONFIRMING_BLOCKS, CONFIRMING_BLOCK_MS)
    if not any(t.latency_ms <= limit_ms() for t in tried) and smallest not in [t.widths for t in tried]:
        tried += _measure(whole, [smallest], predict, BLOCKS, BLOCK_MS)
    fitting = [t for t in tried if t.latency_ms <= limit_ms() and not _slower_than_wider(t, tried)]
    chosen = min(fitting, key=lambda t: (loss(t.widths), t.latency_ms), default=None)
    fastest = min(tried, key=lambda t: t.latency_ms)
    return Settled(chosen or fastest, chosen is not None, whole.unpruned_ms, tuple(tried))


def _new(plans: Sequence[Widths | None], tried: Sequence[Tried]) -> list[Widths]:
    known = [t.widths for t in tried]
    found: list[Widths] = []
    for plan in plans:
        if plan is not None and plan not in known and plan not in found:
            found.append(plan)
    return found


def _measure(
    whole: WholeModels,
    plans: Sequence[Widths],
    predict: Callable[[Widths], float],
    blocks: int,
    block_ms: float,
) -> list[Tried]:
    probes = whole.measure(plans, blocks=blocks, block_ms=block_ms)
    return [Tried(probe.widths, predict(probe.widths), probe.latency_ms) for probe in probes]


def _slower_than_wider(plan: Tried, tried: Sequence[Tried]) -> bool:
    return any(
        other.latency_ms < plan.latency_ms
        and all(other.widths[id] >= width for id, width in plan.widths.items())
        for other in tried
        if other.widths != plan.widths
    )
