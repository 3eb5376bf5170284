"""The exact answer as a mixed-integer linear program, by HiGHS."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from deploycompress.pruning.solver.problem import Choice, Problem

GAP = 0.005  # of the loss, between what was found and what is proven
OPTIONS = 10  # considered of one choice: pairs of two are variables, and a ResNet-50 would have 167,000
TIME_LIMIT_S = 60.0  # some seconds are enough; a plan must not depend on how busy the machine is


def exact(problem: Problem) -> dict[str, int] | None:
    """The state of least loss within the limits; None where none was found in time.

    Of a choice with many options ``OPTIONS`` are considered, the smallest and the whole among them.
    y[a, i] is 1 when choice a takes option i. For a pair that costs together, w[a, i, b, j] is y[a, i] * y[b, j]:
    its sums over j are y[a, i] and over i are y[b, j], which makes w whole once y is, so only y is declared
    integer. A group inside a block takes its width 0 when, and only when, the block does.
    """
    considered = {id: _spread(choice) for id, choice in problem.choices.items()}
    problem = problem.among(considered)
    program = _Program(problem)
    losses = np.concatenate([choice.losses for choice in problem.choices.values()])
    scale = losses.max() or 1.0
    objective = np.zeros(program.size)
    objective[: len(losses)] = losses / scale
    whole = np.zeros(program.size)
    whole[: len(losses)] = 1
    found = milp(
        objective,
        integrality=whole,
        bounds=Bounds(0, 1),
        constraints=program.constraints(),
        options={"time_limit": TIME_LIMIT_S, "mip_rel_gap": GAP},
    )
    if found.x is None:
        return None
    return {
        id: int(considered[id][np.argmax(found.x[first : first + len(problem.choices[id].options)])])
        for id, first in program.first.items()
    }


def _spread(choice: Choice) -> np.ndarray:
    """Numbers of the options that are considered; that a group goes with its block is always one."""
    first = 1 if choice.inside else 0
    spread = np.linspace(first, len(choice.options) - 1, OPTIONS).round().astype(int)
    return np.unique(np.concatenate([np.arange(first), spread]))


class _Program:
    """Numbers the variables, and writes down the constraints row by row."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.first: dict[str, int] = {}  # of a choice's y
        self.size = 0
        for id, choice in problem.choices.items():
            self.first[id] = self.size
            self.size += len(choice.options)
        self.first_pair: dict[tuple[str, str], int] = {}
        for pair, matrix in problem.pairs.items():
            self.first_pair[pair] = self.size
            self.size += matrix.shape[0] * matrix.shape[1]
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []  # columns, values
        self._lower: list[float] = []
        self._upper: list[float] = []

    def constraints(self) -> LinearConstraint:
        for id, choice in self.problem.choices.items():
            self._add(self._of(id), np.ones(len(choice.options)), 1, 1)
        for (a, b), matrix in self.problem.pairs.items():
            self._tie(a, b, matrix.shape[0], matrix.shape[1])
        for block, inside in self.problem.blocks.items():
            for id in inside:
                self._add(np.array([self.first[id], self.first[block]]), np.array([1.0, -1.0]), 0, 0)
        for number, limit in enumerate(self.problem.limits):
            self._limit(number, float(limit))
        rows = np.concatenate([np.full(len(columns), i) for i, (columns, _) in enumerate(self._rows)])
        columns = np.concatenate([columns for columns, _ in self._rows])
        values = np.concatenate([values for _, values in self._rows])
        matrix = coo_array((values, (rows, columns)), shape=(len(self._rows), self.size)).tocsr()
        return LinearConstraint(matrix, self._lower, self._upper)

    def _of(self, id: str) -> np.ndarray:
        return self.first[id] + np.arange(len(self.problem.choices[id].options))

    def _tie(self, a: str, b: str, rows: int, columns: int) -> None:
        w = self.first_pair[a, b] + np.arange(rows * columns).reshape(rows, columns)
        for i in range(rows):
            self._add(np.append(w[i], self.first[a] + i), np.append(np.ones(columns), -1.0), 0, 0)
        for j in range(columns):
            self._add(np.append(w[:, j], self.first[b] + j), np.append(np.ones(rows), -1.0), 0, 0)

    def _limit(self, number: int, limit: float) -> None:
        columns = [self._of(id) for id in self.problem.choices]
        values = [self.problem.own[id][:, number] for id in self.problem.choices]
        for pair, matrix in self.problem.pairs.items():
            columns.append(self.first_pair[pair] + np.arange(matrix[..., 0].size))
            values.append(matrix[..., number].ravel())
        base = float(self.problem.base[number])
        scale = max(abs(base), 1e-12)  # bytes and milliseconds side by side
        self._add(np.concatenate(columns), np.concatenate(values) / scale, -np.inf, (limit - base) / scale)

    def _add(self, columns: np.ndarray, values: np.ndarray, lower: float, upper: float) -> None:
        self._rows.append((columns, values))
        self._lower.append(lower)
        self._upper.append(upper)
