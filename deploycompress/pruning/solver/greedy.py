"""A greedy search with jumps: a good answer at once, and what the exact solver has to beat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deploycompress.pruning.solver.problem import GONE, Problem

Move = dict[str, int]  # choice -> index of its new option


def greedy(problem: Problem) -> dict[str, int] | None:
    """A state within the limits: the cheapest moves first, then what still fits is given back; None if there is none.

    A move goes to any smaller width at once, since a kernel's latency is a staircase and one step may save
    nothing; it is ranked by the loss for what it saves of what is still above the limits.
    """
    state = problem.whole
    cost = problem.cost(state)
    while (cost > problem.limits * (1 + 1e-9)).any():
        excess = np.maximum(cost - problem.limits, 0.0)
        best: tuple[float, Move, np.ndarray] | None = None
        for move, after, loss in _moves(problem, state, cost, narrower=True):
            saved = float((np.minimum(cost - after, excess) / problem.limits).sum())
            if saved > 1e-12 and (best is None or loss / saved < best[0]):
                best = loss / saved, move, after
        if best is None:
            return None
        state |= best[1]
        cost = best[2]
    return give_back(problem, state)


def give_back(problem: Problem, state: dict[str, int]) -> dict[str, int]:
    """Widen, the largest gain first, for as long as something fits."""
    cost = problem.cost(state)
    while True:
        fitting = [
            (loss, move, after)
            for move, after, loss in _moves(problem, state, cost, narrower=False)
            if loss <= 0 and (after <= problem.limits * (1 + 1e-9)).all()
        ]
        # Of equal gains the one that costs least; a gain of nothing would go on forever.
        gaining = [entry for entry in fitting if entry[0] < 0]
        if not gaining:
            return state
        _, move, cost = min(gaining, key=lambda entry: (entry[0], float((entry[2] / problem.limits).sum())))
        state = {**state, **move}


def _moves(
    problem: Problem, state: dict[str, int], cost: np.ndarray, *, narrower: bool
) -> Iterator[tuple[Move, np.ndarray, float]]:
    """Every change of one choice with the cost after it and the loss it adds."""
    around = _around(problem, state)
    for id, choice in problem.choices.items():
        now = state[id]
        if id in problem.blocks:
            wanted = 0 if narrower else 1
            if now != wanted:
                move = _with_block(problem, id, wanted)
                after = {**state, **move}
                yield move, problem.cost(after), problem.loss(after) - problem.loss(state)
            continue
        if choice.options[now] == GONE:
            continue  # it went with its block
        for option in range(now) if narrower else range(now + 1, len(choice.options)):
            if choice.options[option] != GONE:
                change = around[id][option] - around[id][now]
                yield {id: option}, cost + change, float(choice.losses[option] - choice.losses[now])


def _with_block(problem: Problem, block: str, option: int) -> Move:
    """A block goes or comes with the groups inside it, which come back whole."""
    inside = problem.blocks[block]
    return {block: option, **{id: len(problem.choices[id].options) - 1 if option else 0 for id in inside}}


def _around(problem: Problem, state: dict[str, int]) -> dict[str, np.ndarray]:
    """Choice -> [options, costs] what each option costs with all others as they are."""
    found = {id: own.copy() for id, own in problem.own.items()}
    for (a, b), pair in problem.pairs.items():
        found[a] += pair[:, state[b]]
        found[b] += pair[state[a]]
    return found
