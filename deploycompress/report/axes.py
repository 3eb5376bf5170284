"""Axes of the report's plots: where a value stands, and where the ticks are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOG_ABOVE = 25.0  # slowest over fastest from which on the latency axis is logarithmic
ROUND = (1, 2, 5, 10)

Place = Callable[[float], float]


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


def positive_axis(values: Sequence[float], start: float, end: float) -> tuple[Place, list[Tick]]:
    """From zero, or logarithmic where the fastest would vanish beside the slowest."""
    low, high = min(values), max(values)
    if high / low >= LOG_ABOVE:
        return log_axis(10 ** (math.log10(low) - 0.15), 10 ** (math.log10(high) + 0.15), start, end, (1,))
    top = high * 1.12

    def linear(value: float) -> float:
        return start + (end - start) * value / top

    return linear, [Tick(linear(s), f"{s:g}") for s in steps(0.0, top)]


def log_axis(
    low: float, high: float, start: float, end: float, marks: Sequence[int] = (1, 2, 5)
) -> tuple[Place, list[Tick]]:
    """From ``low`` to ``high``, with ticks at ``marks`` times every power of ten."""
    first, last = math.log10(low), math.log10(high)

    def logarithmic(value: float) -> float:
        share = (math.log10(max(value, low)) - first) / ((last - first) or 1.0)
        return start + (end - start) * min(1.0, share)

    exponents = range(math.floor(first), math.ceil(last) + 1)
    ticks = [float(f"{mark}e{e}") for e in exponents for mark in marks]
    return logarithmic, [Tick(logarithmic(t), f"{t:g}") for t in ticks if low <= t <= high]


def metric_axis(values: Sequence[float], unit: str, start: float, end: float) -> tuple[Place, list[Tick]]:
    """Only as far as the figures go, with some air; never beyond 100 % by more than the air."""
    scale = 100.0 if unit == "share" else 1.0
    low, high = scale * min(values), scale * max(values)
    air = 0.12 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - air, high + air
    found = [s for s in steps(low, high, 6) if unit != "share" or 0 <= s <= 100]

    def place(value: float) -> float:
        return start + (end - start) * (scale * value - low) / (high - low)

    sign = " %" if unit == "share" else ""
    return place, [Tick(place(s / scale), f"{s:g}{sign}") for s in found]


def steps(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in ROUND if m * power >= raw * 0.9)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, first + 3 * about) if i * step <= high + 1e-9]
