"""A learning rate found by trying: a short training with a rising rate that leaves no trace."""

from __future__ import annotations

import copy
import itertools
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence

from deploycompress.contracts import Loader
from deploycompress.errors import Interrupted
from deploycompress.recovery.feeding import Cut, Share, groups
from deploycompress.recovery.stepping import Diverged, Stepper

STEPS = 100
RANGES = {"adamw": (1e-6, 1.0), "sgd": (1e-5, 10.0)}
FIRST = 10
SMOOTH = 0.9  # decay of the losses' moving average
LEFT = 0.1  # of its fall: so far above its lowest the loss has left its valley
EQUAL = 1e-3  # of the loss
MARGIN = 4.0  # the rate of a training that is longer than the probe lies below the one that a few steps bear


def find_rate(
    stepper: Stepper, loader: Callable[[], Loader], steps: int, stopping: Callable[[], bool]
) -> float:
    """The highest rate at which the loss still falls, over ``MARGIN``.

    The rate grows geometrically over ``STEPS`` optimiser steps; what counts is the last one before the smoothed
    loss turns up for good. Smith, "Cyclical Learning Rates for Training Neural Networks", section 3.3 (the range
    test). Weights, statistics, the optimiser and what the objective counts are put back. Raises StageFailed when the
    loss is not finite at the lowest rates, Interrupted when the run is ``stopping``.
    """
    training = stepper.training
    tensors = {name: tensor.detach().clone() for name, tensor in training.tensors().items()}
    numbers = copy.deepcopy(training.numbers())
    lowest, highest = RANGES[stepper.recipe.optimizer]
    rates = [lowest * (highest / lowest) ** (i / (STEPS - 1)) for i in range(STEPS)]
    losses: list[float] = []
    batches = itertools.chain.from_iterable(_passes(loader, stepper.recipe.accumulate, stepper.processes.cut))
    try:
        for number, (rate, group) in enumerate(zip(rates, batches, strict=False)):
            if stopping():
                raise Interrupted(signal.SIGTERM)
            where = f"learning-rate probe, step {number + 1}, lr {rate:.3g}"
            try:
                loss, _ = stepper.take(group, number, max(steps, STEPS), rate, where, ())
            except Diverged:
                if number < 2:
                    raise
                break
            losses.append(loss)
            if len(losses) > FIRST and losses[-1] > 10 * max(losses[:FIRST]):
                break
    finally:
        training.restore(tensors, numbers)
    return chosen(rates, losses) / MARGIN


def chosen(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss is last near its lowest, as near as the noise of the first losses lets say."""
    smooth: list[float] = []
    mean = 0.0
    for number, loss in enumerate(losses):
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        smooth.append(mean / (1 - SMOOTH ** (number + 1)))
    first = losses[:FIRST]  # at rates that move nothing yet
    noise = statistics.pstdev(first) * ((1 - SMOOTH) / (1 + SMOOTH)) ** 0.5  # of the moving average
    lowest = min(smooth)
    allowed = lowest + max(LEFT * (statistics.fmean(first) - lowest), 2 * noise, EQUAL * abs(lowest))
    return rates[max(i for i, value in enumerate(smooth) if value <= allowed)]


def _passes(loader: Callable[[], Loader], size: int, cut: Cut) -> Iterator[Iterator[Sequence[Share]]]:
    while True:
        yield groups(loader(), size, 0, STEPS, cut)
