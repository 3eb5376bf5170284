"""The exact solver against trying everything, and the greedy one against the limits."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch

from deploycompress.pruning.allocations.latency import Latency
from deploycompress.pruning.budget import Budget
from deploycompress.pruning.groups import ChannelGroup, Member
from deploycompress.pruning.solver import exact as solver
from deploycompress.pruning.solver.exact import exact
from deploycompress.pruning.solver.greedy import greedy
from deploycompress.pruning.solver.problem import problem

LAYERS = 5
GRID = (2, 4, 6, 8)


class Staircase:
    """A chain of layers g0 .. g3, of which layers 1 and 2 are the block ``b``; latency is a staircase with bumps."""

    def __init__(self, generator: random.Random) -> None:
        self.stair = {width: generator.random() + width // 4 for width in (0, *GRID)}

    def at(self, widths):
        total = 0.5
        for layer in range(LAYERS):
            if widths.get("b", 1) == 0 and layer in (1, 2):
                continue
            read, made = widths.get(f"g{layer - 1}"), widths.get(f"g{layer}")
            total += (layer + 1) * self.stair.get(read, 1.0) * self.stair.get(made, 1.5)
        gone = {"b", "g1"} if widths.get("b", 1) == 0 else {"b"}
        return {"latency": total, "channels": float(sum(v for k, v in widths.items() if k not in gone))}


def subject(seed, with_block, limits=("latency",)):
    generator = random.Random(seed)
    index = torch.arange(8)
    groups = [
        ChannelGroup(
            f"g{i}",
            8,
            (Member(f"l{i}", "out", index, index), Member(f"l{i + 1}", "in", index, index)),
            torch.zeros(8, dtype=torch.long),
            GRID,
        )
        for i in range(LAYERS - 1)
    ]
    scores = {
        g.id: torch.tensor([generator.random() * (1 + generator.random()) for _ in index]) for g in groups
    }
    scores["b"] = torch.tensor([8 * generator.random()])
    blocks = [SimpleNamespace(id="b", layers=frozenset({"l1", "l2"}), groups=frozenset({"g1"}))]
    costs = Staircase(generator)
    full = costs.at({g.id: 8 for g in groups})
    share = generator.choice((0.3, 0.5, 0.7))
    budget = Budget({name: (share if name == "latency" else 0.7) * full[name] for name in limits}, full)
    return groups, blocks if with_block else [], scores, costs, budget


def best_of_all(p, costs, budget):
    """(least loss, its widths), by trying every combination."""
    found = None
    for options in itertools.product(*(range(len(c.options)) for c in p.choices.values())):
        state = dict(zip(p.choices, options, strict=True))
        if "b" in state and (state["b"] == 0) != (state["g1"] == 0):
            continue
        cost = costs.at(p.widths(state))
        assert p.cost(state) == pytest.approx([cost[name] for name in budget.limits])
        if budget.met(cost) and (found is None or p.loss(state) < found[0]):
            found = p.loss(state), p.widths(state)
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_block", [False, True])
@pytest.mark.parametrize("limits", [("latency",), ("latency", "channels")])
def test_exact_is_the_best_of_all_and_greedy_keeps_the_limits(seed, with_block, limits):
    groups, blocks, scores, costs, budget = subject(seed, with_block, limits)
    p = problem(groups, blocks, scores, costs, budget)
    best = best_of_all(p, costs, budget)
    assert best is not None
    found, quick = exact(p), greedy(p)
    assert found is not None and quick is not None
    assert p.met(found) and p.loss(found) <= best[0] * 1.0051  # the gap that is asked of HiGHS
    assert p.met(quick) and p.loss(quick) >= best[0] - 1e-9


def test_greedy_jumps_over_a_step_that_saves_nothing():
    index = torch.arange(8)
    group = ChannelGroup("g", 8, (Member("l", "out", index, index),), torch.zeros(8, dtype=torch.long), GRID)
    stairs = SimpleNamespace(at=lambda widths: {"latency": {2: 1.0, 4: 1.0, 6: 2.0, 8: 2.0}[widths["g"]]})
    p = problem([group], [], {"g": torch.ones(8)}, stairs, Budget({"latency": 1.5}, {"latency": 2.0}))
    assert p.widths(greedy(p)) == {"g": 4}  # not 2: the wider of the two that cost the same


@pytest.mark.parametrize("with_block", [False, True])
def test_of_many_options_some_are_considered(with_block, monkeypatch):
    """With two of them the best of the ends."""
    monkeypatch.setattr(solver, "OPTIONS", 2)
    groups, blocks, scores, costs, budget = subject(3, with_block)
    p = problem(groups, blocks, scores, costs, budget)
    found = exact(p)
    widths = p.widths(found)
    assert p.met(found) and {widths[g.id] for g in groups} <= {0, GRID[0], GRID[-1]}
    if not with_block:
        ends = itertools.product((0, len(GRID) - 1), repeat=len(groups))
        states = [dict(zip(p.choices, state, strict=True)) for state in ends]
        assert p.loss(found) == pytest.approx(min(p.loss(s) for s in states if p.met(s)))


def test_no_answer_where_there_is_none():
    groups, blocks, scores, costs, budget = subject(0, True)
    p = problem(groups, blocks, scores, costs, Budget({"latency": 0.1}, budget.original))
    assert exact(p) is None and greedy(p) is None


def test_limits_are_tightened_where_three_groups_meet_in_one_operator():
    groups, _, scores, _, _ = subject(1, False)

    class Product:
        def at(self, widths):
            return {"latency": float(widths["g0"] * widths["g1"] * widths["g2"]) / 512}

    index = torch.arange(8)
    tied = [ChannelGroup(g.id, 8, (Member("l", "in", index, index),), g.segments, GRID) for g in groups[:3]]
    budget = Budget({"latency": 0.3}, {"latency": 1.0})
    widths = Latency()(tied, scores, Product(), budget)
    assert 0.1 < Product().at(widths)["latency"] <= 0.3
