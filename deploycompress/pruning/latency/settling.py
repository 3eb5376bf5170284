"""The truth loop: plans are applied, exported and measured until one is just within the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from deploycompress.pruning.latency.prediction import Widths
from deploycompress.pruning.latency.whole import WholeModels

ROUNDS = 6
FIRST = (0.95, 1.0, 1.05)  # of the limit: three plans at once, so that one of them is near
SPREAD = 0.012  # around a corrected budget, times the round
CLOSING = (0.995, 1.0, 1.005)  # of the limit itself, at the end
BRACKET = 1.003  # what two predictions differ by, so that there may be a plan between them
CLOSE = 0.97  # of the target, that a plan has to reach: what is below gave away accuracy for nothing
AIM = 0.985  # of the target, in the middle
FILLED = (0.7, 1.0, 1.3)  # of what a plan is below the middle, that is given back to it
FILLS = 4  # times at the end, where what loses least is below the window: it would lose less yet inside of it
NEAR = 0.02  # of the limit: a plan this far outside of the window may be inside when measured for longer
BLOCKS, BLOCK_MS = 12, 40.0
# One process may differ from the next by 2 % for as long as it runs, so that a longer measurement takes several.
CONFIRMING_BLOCKS, CONFIRMING_BLOCK_MS, CONFIRMING_PROCESSES = 6, 80.0, 5

# A limit on the predicted latency, as a share of the unpruned model's -> a plan, None: there is none.
Allocate = Callable[[float], Widths | None]
# A plan and a limit as above -> the same plan with some groups wider.
Widen = Callable[[Widths, float], Widths]


@dataclass(frozen=True)
class Tried:
    """One plan that was measured; latencies are shares of the unpruned model's."""

    widths: Widths
    predicted: float
    ratio: float
    pace_ms: float  # what the unpruned model took beside it
    confirmed: bool = False  # measured for longer, in several processes


@dataclass(frozen=True)
class Settled:
    """The plan that is taken; ``tried`` are all that were measured, those that count for nothing last."""

    chosen: Tried
    reached: bool
    unpruned_ms: float
    tried: tuple[Tried, ...]
    slowed: int = 0  # of them were measured while the machine was slower, and count for nothing


def settle(
    whole: WholeModels,
    allocate: Allocate,
    widen: Widen,
    *,
    predict: Callable[[Widths], float],
    loss: Callable[[Widths], float],
    smallest: Widths,
    limit: Callable[[], float],
    say: Callable[[str, Mapping[str, float]], None] = lambda message, figures: None,
) -> Settled:
    """Correct the predicted budget until the measured latency is at most ``limit`` and at least 97 % of it.

    ``limit``: as a share of the unpruned model's latency; asked again after each measurement, since an absolute
    one depends on that. Of the plans within the limit the one that loses least is taken, measured for longer
    first; one that is slower than a wider one never is. Only what was measured counts, whatever was predicted.
    """
    search = _Search(whole, allocate, widen, predict, limit)
    for round in range(ROUNDS):
        plans = next(filter(None, map(search.new, search.plans(round))), [])
        if plans:
            search.measure(plans)
        elif round == 0:
            search.measure([smallest])
        elif search.best(loss) is not None:
            break  # the grid has nothing nearer
        nearest = search.nearest()
        if search.close(nearest, NEAR) and not nearest.confirmed:
            search.confirm(nearest)
            nearest = search.nearest()
        say("plans measured", {"round": round + 1.0, "limit": limit(), "nearest": nearest.ratio})
        if nearest.confirmed and search.close(nearest):
            break
    if last := search.new(search.closing()):
        search.measure(last)
    if search.best(loss) is None and search.new([smallest]):
        search.measure([smallest])
    chosen = search.best(loss)
    for _ in range(FILLS):
        if chosen is None or search.close(chosen) or not (wider := search.new(search.filled(chosen))):
            break
        search.measure(wider)
        chosen = search.best(loss)
    fastest = min(search.tried, key=lambda t: t.ratio)
    tried = (*search.tried, *search.slowed)
    return Settled(chosen or fastest, chosen is not None, whole.unpruned_ms, tried, len(search.slowed))


def measure_alone(whole: WholeModels, widths: Widths, predict: Callable[[Widths], float]) -> Settled:
    """The one plan there is where another target is out of reach: measured, and not what was asked for."""
    (ratio,) = whole.measure([widths], blocks=BLOCKS, block_ms=BLOCK_MS)
    only = Tried(widths, predict(widths), ratio, whole.pace_ms)
    return Settled(only, False, whole.unpruned_ms, (only,))


class _Search:
    """The plans measured so far; those that were measured while the machine was slower are set aside."""

    def __init__(
        self,
        whole: WholeModels,
        allocate: Allocate,
        widen: Widen,
        predict: Callable[[Widths], float],
        limit: Callable[[], float],
    ) -> None:
        self._whole, self._allocate, self._widen = whole, allocate, widen
        self._predict, self._limit = predict, limit
        self.tried: list[Tried] = []
        self.slowed: list[Tried] = []

    def new(self, plans: Iterable[Widths | None]) -> list[Widths]:
        """Those that have not been measured yet."""
        known = [t.widths for t in self.tried]
        found: list[Widths] = []
        for plan in plans:
            if plan is not None and plan not in known and plan not in found:
                found.append(plan)
        return found

    def plans(self, round: int) -> Iterator[list[Widths | None]]:
        """What to measure next, the best choice first; the others where it leads to nothing new.

        Between neighbours by prediction of which one is within the limit and the other above it. Where these
        lead nowhere in two rounds, the best plan within the limit with a few groups wider: latencies jump from
        one solution of the program to the next, and much less from a plan to one that is nearly the same.
        Else around what the limit is after the nearest plan's error, a little wider every time.
        """
        if not self.tried:
            yield self._planned(share * AIM * self._limit() for share in FIRST)
            return
        best_below = max((t for t in self.tried if self._below(t)), key=lambda t: t.ratio, default=None)
        if best_below and round > 1:
            yield self.filled(best_below)
        for below, above in self._crossings():
            step = (above.predicted - below.predicted) / 4
            yield self._planned(below.predicted + n * step for n in (1, 2, 3))
        if best_below:
            yield self.filled(best_below)
        nearest = self.nearest()
        centre = AIM * self._limit() * nearest.predicted / nearest.ratio
        yield self._planned([centre * (1 - SPREAD * round), centre, centre * (1 + SPREAD * round)])

    def _planned(self, budgets: Iterable[float]) -> list[Widths | None]:
        return [self._allocate(budget) for budget in budgets]

    def filled(self, plan: Tried) -> list[Widths | None]:
        """The plan with some groups wider, by about as much as it is below the middle of the window."""
        missing = (AIM * self._limit() / plan.ratio - 1) * plan.predicted
        return [self._widen(plan.widths, plan.predicted + share * missing) for share in FILLED]

    def _crossings(self) -> Iterator[tuple[Tried, Tried]]:
        """Neighbours by prediction with the limit between them, the widest first: measured latencies need not
        rise with predicted ones, so there may be several."""
        ordered = sorted(self.tried, key=lambda t: t.predicted)
        for below, above in reversed(list(pairwise(ordered))):
            apart = above.predicted > BRACKET * below.predicted
            if below.ratio <= self._limit() < above.ratio and apart:
                yield below, above

    def closing(self) -> list[Widths | None]:
        """Plans at the limit itself: the best of a coarse grid may be in its last per cent."""
        nearest = self.nearest()
        at_limit = self._limit() * nearest.predicted / nearest.ratio
        return self._planned(share * at_limit for share in CLOSING)

    def measure(self, plans: Sequence[Widths]) -> None:
        ratios = self._whole.measure(plans, blocks=BLOCKS, block_ms=BLOCK_MS)
        pace_ms = self._whole.pace_ms
        self._keep(Tried(p, self._predict(p), r, pace_ms) for p, r in zip(plans, ratios, strict=True))

    def confirm(self, plan: Tried) -> Tried:
        """The same plan, measured for longer and in several processes; this figure replaces the first."""
        (ratio,) = self._whole.measure(
            [plan.widths],
            blocks=CONFIRMING_BLOCKS,
            block_ms=CONFIRMING_BLOCK_MS,
            processes=CONFIRMING_PROCESSES,
        )
        confirmed = replace(plan, ratio=ratio, pace_ms=self._whole.pace_ms, confirmed=True)
        self.tried.remove(plan)
        self._keep([confirmed])
        return confirmed

    def _keep(self, measured: Iterable[Tried]) -> None:
        """What was measured last is kept even where the machine is slow now, or there would be nothing to go on."""
        last = list(measured)
        faster = [t for t in self.tried if self._whole.at_full_pace(t.pace_ms)]
        self.slowed += [t for t in self.tried if t not in faster]
        self.tried = [*faster, *last]

    def nearest(self) -> Tried:
        return min(self.tried, key=lambda t: abs(t.ratio - AIM * self._limit()))

    def _below(self, plan: Tried) -> bool:
        return plan.ratio < CLOSE * self._limit()

    def close(self, plan: Tried, apart: float = 0.0) -> bool:
        """Whether its latency is in the window; or this share of the limit outside of it."""
        return CLOSE - apart <= plan.ratio / self._limit() <= 1 + apart

    def fitting(self) -> list[Tried]:
        return [t for t in self.tried if t.ratio <= self._limit() and not self._slower_than_wider(t)]

    def best(self, loss: Callable[[Widths], float]) -> Tried | None:
        """Of what fits the one that loses least; what a longer measurement finds too slow is passed over."""
        while fitting := self.fitting():
            best = min(fitting, key=lambda t: (loss(t.widths), t.ratio))
            if best.confirmed:
                return best
            self.confirm(best)
        return None

    def _slower_than_wider(self, plan: Tried) -> bool:
        return any(
            other.ratio < plan.ratio
            and other.widths != plan.widths
            and all(other.widths[id] >= width for id, width in plan.widths.items())
            for other in self.tried
        )
