"""What is cut, masked and counted agrees, for every kind of coupling."""

import copy

import pytest
import torch

from deploycompress.errors import StageFailed
from deploycompress.model import checkpoint
from deploycompress.model.parity import compare, to_numpy
from deploycompress.pruning.apply import apply
from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import choose, on_grid
from deploycompress.pruning.masked import masked


def planned(model, seed, align=2):
    """The model, its groups, random widths and the channels kept at them."""
    module = model.build()
    groups = on_grid(find_groups(module, model).groups, align)
    generator = torch.Generator().manual_seed(seed)
    scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in groups}
    widths = {g.id: g.grid[int(torch.randint(0, len(g.grid), (), generator=generator))] for g in groups}
    return module, groups, widths, choose(groups, scores, widths)


def outputs(model, module, size):
    with torch.no_grad():
        return to_numpy(model.call(module, model.example(size)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pruned_equals_masked_and_costs_what_was_foreseen(network, tmp_path, seed):
    module, groups, widths, kept = planned(network, seed)
    foreseen = WidthCosts(module, groups, network).at(widths)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    pruned = copy.deepcopy(module)
    apply(pruned, groups, kept)
    reference = masked(module, groups, kept)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    for size in (1, 5):
        assert compare(outputs(network, reference, size), outputs(network, pruned, size)).relative < 1e-5
    realised = count(pruned, network)
    assert {name: foreseen[name] for name in realised} == realised
    assert foreseen["channels"] == sum(widths.values())
    checkpoint.save(pruned, tmp_path / "model", network)
    loaded = checkpoint.load(tmp_path / "model", network)
    assert compare(outputs(network, pruned, 3), outputs(network, loaded, 3)).max_abs == 0


def test_what_was_pruned_can_be_pruned_again(network):
    module, groups, _, kept = planned(network, 3)
    apply(module, groups, kept)
    again = on_grid(find_groups(module, network).groups, 1)
    scores = {g.id: torch.arange(g.width, dtype=torch.float64) for g in again}
    more = choose(again, scores, {g.id: g.grid[0] for g in again})
    reference = masked(module, again, more)
    apply(module, again, more)
    assert compare(outputs(network, reference, 2), outputs(network, module, 2)).relative < 1e-5


def test_the_mask_itself_changes_the_outputs(network):
    module, groups, _, _ = planned(network, 0)
    scores = {g.id: torch.arange(g.width, dtype=torch.float64) for g in groups}
    kept = choose(groups, scores, {g.id: g.grid[0] for g in groups})
    apart = compare(outputs(network, module, 2), outputs(network, masked(module, groups, kept), 2))
    assert apart.relative > 1e-3


def test_nothing_to_cut_changes_nothing(network):
    module, groups, _, _ = planned(network, 0)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    apply(module, groups, {})
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_the_pruned_model_trains(network):
    module, groups, _, kept = planned(network, 1)
    apply(module, groups, kept)
    module.train()
    loss = sum(t.square().mean() for t in network.call(module, network.example(4)).values())
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


def test_a_width_that_is_not_the_planned_one_is_noticed(networks, monkeypatch):
    model = networks["chain"]
    module, groups, _, _ = planned(model, 0)
    monkeypatch.setattr("deploycompress.pruning.apply.cut", lambda part, keep: None)
    with pytest.raises(StageFailed, match=r"layer 0 has 16 output channels after pruning; planned are 8"):
        apply(module, groups, {"0": torch.arange(8)})
