"""The latency of a whole model as a function of its groups' widths: its operators, fitted to whole models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from deploycompress.pruning.groups import ChannelGroup
from deploycompress.pruning.latency.rows import Row
from deploycompress.pruning.latency.table import Latencies

FAMILIES = ("conv", "depthwise", "matmul")
ELEMENTS = "elements"  # that operators write: what all else works on, and what moves through memory
OPERATORS = "operators"  # how many there are: what starting one costs, less what looking at each one cost
FEATURES = (*FAMILIES, ELEMENTS, OPERATORS)
# Weights, as so many probes, of the beliefs that an operator takes in a model what it takes alone, and that elements and
# operators cost nothing beside. In MobileNetV1 the first holds within 10 % but for layers of large maps, whose
# activations cost up to 40 % beside. Few probes leave open which family took the time; with a weaker belief the solver
# went for what one family was said to save, and did not.
PRIOR_FAMILY, PRIOR_BESIDE = 0.5, 0.1
FORGIVEN = 0.03  # of the latency: what a probe may be off without counting less
REWEIGHTED = 8  # times

Widths = Mapping[str, int]
Features = Mapping[str, float]  # milliseconds by family, elements in millions, a number


@dataclass(frozen=True)
class Probe:
    """One whole model that was measured."""

    widths: Widths
    latency_ms: float


class LatencyCosts:
    """Implements ``Costs`` with the one figure ``latency``, in milliseconds.

    T(k) = sum over families f of a_f * (sum of the latencies of its operators at widths k) + a_e * (elements they
    write) + a_n * (number of operators). All but a_n are at least zero: a profiler adds to every operator that it
    looks at, and a_n takes that away again. Before ``fit`` an operator counts what it takes alone.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        groups: Sequence[ChannelGroup],
        latencies: Latencies,
        blocks: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        by_id = {group.id: group for group in groups}
        self._full = {group.id: group.width for group in groups}
        self._rows = [(row, row.grid(by_id, latencies), row.groups) for row in rows]
        self._block_of = {layer: id for id, layers in (blocks or {}).items() for layer in layers}
        self._known: list[dict[tuple[int, ...], tuple[float, float]]] = [
            {} for _ in rows
        ]  # by the groups' widths
        self.coefficients: dict[str, float] = dict.fromkeys(FAMILIES, 1.0) | {ELEMENTS: 0.0, OPERATORS: 0.0}

    def at(self, widths: Widths) -> Mapping[str, float]:
        return {"latency": self.latency_ms(widths)}

    def latency_ms(self, widths: Widths) -> float:
        return _dot(self.coefficients, self.features(widths))

    @property
    def full(self) -> Widths:
        """Every group whole."""
        return dict(self._full)

    def relative_error(self, probe: Probe) -> float:
        return abs(self.latency_ms(probe.widths) / probe.latency_ms - 1)

    def features(self, widths: Widths) -> Features:
        """What the coefficients weigh, at these widths; a block of width 0 is gone."""
        found: defaultdict[str, float] = defaultdict(float)
        for (row, grid, groups), known in zip(self._rows, self._known, strict=True):
            if widths.get(self._block_of.get(row.operator.layer, ""), 1) == 0:
                continue
            place = tuple(widths[id] for id in groups)
            if place not in known:
                c_in, c_out = row.widths(widths, self._full)
                known[place] = grid.at(c_in, c_out), row.operator.positions * c_out / 1e6
            latency_ms, elements = known[place]
            found[row.operator.family] += latency_ms
            found[ELEMENTS] += elements
            found[OPERATORS] += 1
        return found

    def fit(self, probes: Sequence[Probe]) -> float:
        """Set the coefficients by least squares of the relative errors; the largest error when one probe is left out."""
        table = np.array([[f[name] for name in FEATURES] for f in (self.features(p.widths) for p in probes)])
        measured = np.array([p.latency_ms for p in probes])
        scale = measured.mean()
        self.coefficients = dict(zip(FEATURES, _solve(table, measured, scale), strict=True))
        errors = []
        for i in range(len(probes)):
            others = np.arange(len(probes)) != i
            predicted = table[i] @ _solve(table[others], measured[others], scale)
            errors.append(abs(predicted - measured[i]) / measured[i])
        return float(max(errors))


def _solve(table: np.ndarray, measured: np.ndarray, scale: float) -> np.ndarray:
    """Relative errors made small within bounds, with a weak belief where the probes do not tell.

    Squared errors, but straight ones beyond ``FORGIVEN`` (Huber's loss): something else may have run beside one.
    """
    shares = table.max(axis=0) / scale
    shares[shares == 0] = 1.0  # of what the model does not have
    believed = np.array([1.0 if name in FAMILIES else 0.0 for name in FEATURES])
    prior = np.diag(shares * np.where(believed, PRIOR_FAMILY, PRIOR_BESIDE))
    lowest = [-np.inf if name == OPERATORS else 0.0 for name in FEATURES]
    relative = table / measured[:, None]
    weights = np.ones(len(measured))
    found = believed
    for _ in range(REWEIGHTED):
        a = np.vstack([relative * weights[:, None], prior])
        b = np.concatenate([weights, prior @ believed])
        found = lsq_linear(a / shares, b, bounds=(lowest, np.inf)).x / shares
        errors = np.abs(relative @ found - 1)
        weights = np.sqrt(FORGIVEN / np.maximum(errors, FORGIVEN))
    return found


def _dot(coefficients: Mapping[str, float], features: Features) -> float:
    return sum(coefficients[name] * value for name, value in features.items())
