"""The step between widths that pays on the target, found by measuring it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from deploycompress.contracts import Store
from deploycompress.devices.jobs import Progress
from deploycompress.graph.operators import Operator
from deploycompress.pruning.latency.bench import Place
from deploycompress.pruning.latency.table import Latencies, measured_table

# What kernels work in; the coarsest where none finer pays, the finest for what has no dense operator.
STEPS = (32, 16, 8, 4)
MOST_OPERATORS = 4
WORTH = 0.25  # of what two steps save, that one of them has to; a half where latency is a straight line


def measured_alignment(operators: Sequence[Operator], place: Place, store: Store, progress: Progress) -> int:
    """The finest step that still saves time, on either side of the operators with the most MACs."""
    subjects = _subjects(operators)
    if not subjects:
        return STEPS[-1]
    points = [point for subject in subjects for side in _sides(subject) for point in side.values()]
    latencies = measured_table(points, operators, place, store, progress)
    chosen = STEPS[0]
    for step in STEPS[1:]:
        if mean(_gain(side, latencies, step) for subject in subjects for side in _sides(subject)) < WORTH:
            break
        chosen = step
    return chosen


def _subjects(operators: Sequence[Operator]) -> list[Operator]:
    dense = {op.anywhere() for op in operators if op.groups == 1 and min(op.c_in, op.c_out) >= STEPS[-1]}
    return sorted(dense, key=lambda op: (-op.macs, repr(op)))[:MOST_OPERATORS]


def _sides(operator: Operator) -> Iterator[Mapping[int, Operator]]:
    """Channels above a middle width -> the operator with so many, once for its inputs and once for its outputs."""
    offsets = (0, *STEPS)
    c_in, c_out = _middle(operator.c_in), _middle(operator.c_out)
    yield {offset: operator.at(c_in + offset, operator.c_out) for offset in offsets}
    yield {offset: operator.at(operator.c_in, c_out + offset) for offset in offsets}


def _middle(width: int) -> int:
    return max(STEPS[0], width // 2 // STEPS[0] * STEPS[0])


def _gain(side: Mapping[int, Operator], latencies: Latencies, step: int) -> float:
    """What the first of two steps down saves, as a share of what both save; 0 where they save nothing."""
    wide, narrower, least = (latencies[side[offset].anywhere()] for offset in (2 * step, step, 0))
    return (wide - narrower) / (wide - least) if wide > least else 0.0
