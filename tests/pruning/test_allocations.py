"""Widths meet their budget, closely, or say how far they can go."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model.source import SourceModel
from deploycompress.pruning.allocations.global_ranking import Global
from deploycompress.pruning.allocations.isomorphic import Isomorphic
from deploycompress.pruning.allocations.uniform import Uniform
from deploycompress.pruning.budget import Budget, allocate, give_back, step_loss, worth
from deploycompress.pruning.costs import WidthCosts
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import Unpruned, on_grid
from deploycompress.pruning.target import Target
from deploycompress.registry import ALLOCATIONS

EACH = pytest.mark.parametrize(
    "allocation", [ALLOCATIONS.load(name)() for name in ALLOCATIONS], ids=ALLOCATIONS
)


@pytest.fixture(scope="module")
def resnet():
    """The quickstart's network: 32 channels wide, eight layers deep."""
    inputs = {"image": InputSpec(shape=("batch", 1, 32, 32))}
    config = ModelConfig(build="deploycompress.examples.resnet:build", args={}, weights=None, inputs=inputs)
    model = SourceModel(config, 0)
    module = model.build()
    groups = on_grid(find_groups(module, model).groups, 8)
    generator = torch.Generator().manual_seed(0)
    scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in groups}
    return groups, scores, WidthCosts(module, groups, model)


def budget(costs, **target):
    return Budget(Target.model_validate(target).limits(costs.full), costs.full)


@EACH
@pytest.mark.parametrize("share", [0.75, 0.5, 0.35, 0.2])
def test_a_share_of_the_macs_is_met_closely(resnet, allocation, share):
    groups, scores, costs = resnet
    found = allocate(allocation, groups, scores, costs, budget(costs, macs=f"{100 * share}%"))
    assert found.reached
    assert share - 0.03 <= found.cost["macs"] / costs.full["macs"] <= share
    assert all(found.widths[g.id] % 8 == 0 and found.widths[g.id] >= g.width / 8 for g in groups)


@EACH
@pytest.mark.parametrize(
    ("target", "name", "limit"),
    [
        ({"params": "50%"}, "params", 0.5),
        ({"params": 100_000}, "params", 100_000 / 308_074),
        ({"size": "300 KB"}, "size", 300_000 / 1_238_000),
        ({"macs": "10 M"}, "macs", 10e6 / 48_530_688),
        ({"ratio": 0.3}, "channels", 0.7),
    ],
)
def test_every_kind_of_target(resnet, allocation, target, name, limit):
    groups, scores, costs = resnet
    found = allocate(allocation, groups, scores, costs, budget(costs, **target))
    assert limit - 0.06 <= found.cost[name] / costs.full[name] <= limit * 1.001


@EACH
def test_of_several_targets_all_hold(resnet, allocation):
    groups, scores, costs = resnet
    found = allocate(allocation, groups, scores, costs, budget(costs, macs="60%", params="20%"))
    assert found.cost["macs"] <= 0.6 * costs.full["macs"]
    assert 0.17 * costs.full["params"] <= found.cost["params"] <= 0.2 * costs.full["params"]


@EACH
def test_a_cost_that_joins_is_met_like_the_others(resnet, allocation):
    groups, scores, costs = resnet
    first = groups[1].id

    class Joined:
        def at(self, widths):
            """A staircase over one group's width, beside the others."""
            return {**costs.at(widths), "latency": 1.0 + -(-widths[first] // 16)}

    joined = Joined()
    limits = Budget(
        {"latency": 2.0, "macs": 0.6 * costs.full["macs"]}, joined.at({g.id: g.width for g in groups})
    )
    found = allocate(allocation, groups, scores, joined, limits)
    assert found.cost["latency"] == 2.0 and found.widths[first] == 16
    assert 0.5 * costs.full["macs"] < found.cost["macs"] <= 0.6 * costs.full["macs"]


@EACH
def test_nothing_that_fits_is_left_out(resnet, allocation):
    groups, scores, costs = resnet
    limits = budget(costs, macs="40%")
    widths = dict(allocate(allocation, groups, scores, costs, limits).widths)
    for group in groups:
        wider = [w for w in group.grid if w > widths[group.id]]
        if wider:
            assert not limits.met(costs.at(widths | {group.id: wider[0]}))


@EACH
def test_a_target_that_is_met_already_prunes_nothing(resnet, allocation):
    groups, scores, costs = resnet
    found = allocate(allocation, groups, scores, costs, budget(costs, macs="100%"))
    assert found.widths == {g.id: g.width for g in groups}


def test_uniform_keeps_about_the_same_share_everywhere(resnet):
    groups, scores, costs = resnet
    widths = allocate(Uniform(), groups, scores, costs, budget(costs, ratio=0.5)).widths
    assert {widths[g.id] / g.width for g in groups} == {0.5}


def test_global_lets_the_unimportant_go(resnet):
    groups, scores, costs = resnet
    low = groups[3].id
    weighted = {id: s * (0.01 if id == low else 1) for id, s in scores.items()}
    widths = allocate(Global(), groups, weighted, costs, budget(costs, macs="70%")).widths
    shares = {g.id: widths[g.id] / g.width for g in groups}
    assert shares.pop(low) == 0.25 and min(shares.values()) > 0.25  # one block was given back


def classes(groups):
    found = {}
    for group in groups:
        found.setdefault(group.topology, []).append(group)
    return list(found.values())


def test_isomorphic_classes_of_a_residual_network(resnet):
    """The insides of the blocks; the first stage's stream, without a projection; the streams with one, which end otherwise."""
    groups, _, _ = resnet
    assert [[g.id for g in members] for members in classes(groups)] == [
        ["conv1"],
        ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"],
        ["layer2.0.conv2"],
        ["layer3.0.conv2"],
    ]


def test_isomorphic_keeps_one_share_of_every_class(resnet):
    groups, scores, costs = resnet
    limit = Budget({"channels": 0.5 * costs.full["channels"]}, costs.full)
    widths = allocate(Isomorphic(), groups, scores, costs, limit).widths
    for members in classes(groups):
        kept = sum(widths[g.id] for g in members)
        assert kept == 0.5 * sum(g.width for g in members)


def test_isomorphic_ranks_within_a_class_and_not_between_classes(resnet):
    groups, scores, costs = resnet
    limits = budget(costs, ratio=0.5)
    plain = allocate(Isomorphic(), groups, scores, costs, limits).widths
    lone, first, other = groups[0].id, "layer1.0.conv1", "layer2.0.conv1"

    def weighted(id):
        return {i: s * (0.001 if i == id else 1) for i, s in scores.items()}

    assert allocate(Isomorphic(), groups, weighted(lone), costs, limits).widths == plain
    shifted = allocate(Isomorphic(), groups, weighted(other), costs, limits).widths
    assert shifted[other] == 8 < plain[other] and shifted[first] > plain[first]


def test_global_is_near_the_best_of_all_plans(networks):
    model = networks["residual"]
    module = model.build()
    groups = on_grid(find_groups(module, model).groups, 4)
    costs = WidthCosts(module, groups, model)
    generator = torch.Generator().manual_seed(1)
    scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in groups}

    def lost(widths):
        return sum(step_loss(g, scores[g.id], widths[g.id], g.width) for g in groups)

    for share in (0.8, 0.6, 0.4):
        limits = budget(costs, macs=f"{100 * share}%")
        plans = [
            dict(zip([g.id for g in groups], p, strict=True))
            for p in itertools.product(*[g.grid for g in groups])
        ]
        best = min(lost(plan) for plan in plans if limits.met(costs.at(plan)))
        assert lost(allocate(Global(), groups, scores, costs, limits).widths) <= 1.3 * best


@EACH
def test_an_unreachable_target_says_how_far_it_goes(resnet, allocation):
    groups, scores, costs = resnet
    left = [Unpruned("head", "because"), *[Unpruned(f"l{i}", "why") for i in range(4)]]
    with pytest.raises(StageFailed) as caught:
        allocate(allocation, groups, scores, costs, budget(costs, macs="1%"), unpruned=left)
    message = str(caught.value)
    assert "the target cannot be reached: the smallest is macs 3.7% (target 1.0%)" in message
    assert "5 layers left whole (head: because; l0: why; l1: why; and 2 more)" in message
    assert "on_unreachable: best" in message


@EACH
def test_or_goes_as_far_as_it_can(resnet, allocation):
    groups, scores, costs = resnet
    found = allocate(allocation, groups, scores, costs, budget(costs, macs="1%"), on_unreachable="best")
    assert not found.reached and found.shortfall.startswith("macs 3.7%")
    assert found.widths == {g.id: g.grid[0] for g in groups}


@EACH
def test_no_groups_at_all(resnet, allocation):
    _, _, costs = resnet
    none = WidthCosts.__new__(WidthCosts)
    none.at = lambda widths: costs.full
    with pytest.raises(StageFailed, match="with 0 groups at their smallest"):
        allocate(allocation, [], {}, none, budget(costs, macs="50%"))


def test_a_share_of_channels_where_there_is_none_to_go(resnet):
    _, _, costs = resnet
    full = {**costs.full, "channels": 0.0}
    none = SimpleNamespace(at=lambda widths: full)
    limits = Budget(Target.model_validate({"ratio": 0.5}).limits(full), full)
    with pytest.raises(
        StageFailed, match=r"smallest is channels 100\.0%: there is none that could go, with 0"
    ):
        allocate(Global(), [], {}, none, limits)
    found = allocate(Global(), [], {}, none, limits, on_unreachable="best")
    assert not found.reached and found.shortfall


def test_channels_are_worth_something_where_the_prediction_is_within_the_limit(resnet):
    """What was predicted may be measured slower: then it must be known which channels cost what."""
    groups, _, costs = resnet
    found = worth(groups, costs, budget(costs, macs="100%"))
    assert all(value > 0 for value in found.values())
    assert found == worth(groups, costs, budget(costs, macs="50%"))


def test_a_narrower_group_that_costs_more_is_worth_nothing(resnet):
    odd = resnet[0][0]

    def at(widths):
        return {"macs": 2.0 if widths[odd.id] < odd.width else 1.0}

    found = worth([odd], SimpleNamespace(at=at), Budget({"macs": 0.5}, {"macs": 1.0}))
    assert found == {odd.id: 0.0}


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (lambda g: 9, r"allocation Wrong: received the width 9 for conv1; expected one of \[8, 16, 24, 32\]"),
        (lambda g: g.width, r"its widths are above the budget: macs 100\.0% \(target 50\.0%\)"),
    ],
)
def test_an_allocation_of_ones_own_is_held_to_its_promise(resnet, widths, message):
    class Wrong:
        def __call__(self, groups, scores, costs, budget):
            return {g.id: widths(g) for g in groups}

    groups, scores, costs = resnet
    with pytest.raises(ConfigError, match=message):
        allocate(Wrong(), groups, scores, costs, budget(costs, macs="50%"))


def test_giving_back_takes_the_highest_rank_first(resnet):
    groups, _, costs = resnet
    smallest = {g.id: g.grid[0] for g in groups}
    wanted = groups[2].id
    limit = costs.at(smallest | {wanted: groups[2].grid[1]})["macs"]
    widths = give_back(
        groups, smallest, costs, Budget({"macs": limit}, costs.full), lambda g, w: float(g.id == wanted)
    )
    assert widths[wanted] == groups[2].grid[1]


def test_a_channel_is_worth_what_it_saves(resnet):
    groups, _, costs = resnet
    found = worth(groups, costs, budget(costs, macs="50%"))
    first = groups[1]
    full = {g.id: g.width for g in groups}
    saved = costs.full["macs"] - costs.at(full | {first.id: 8})["macs"]
    assert found[first.id] == pytest.approx(saved / costs.full["macs"] / (first.width - 8))
