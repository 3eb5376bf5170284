"""Trials get dearer or cheaper with the model: recovery, shares and samples that a budget lasts for."""

import pytest
import torch

from deploycompress.contracts import Batch
from deploycompress.pruning import effort
from deploycompress.pruning.blocks import Block
from deploycompress.pruning.costs import count
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.effort import FEWER_SHARES, PRUNED_SHARES, affordable
from deploycompress.pruning.groups import on_grid


@pytest.fixture
def subject(networks):
    network = networks["chain"]
    module = network.build()
    groups = on_grid(find_groups(module, network).groups, 1)
    batches = [Batch({"x": torch.zeros(16, 3, 8, 8)}, None, 16) for _ in range(40)]
    return network, module, groups, batches, count(module, network)["macs"]


def test_a_small_model_is_recovered_in_every_trial(subject):
    network, module, groups, batches, _ = subject
    found = affordable(module, groups, (), batches, network)
    assert found.recovered and found.shares == PRUNED_SHARES
    assert (len(found.judging), len(found.fitting)) == (effort.JUDGING, effort.BATCHES - effort.JUDGING)
    assert not {id(b) for b in found.judging} & {id(b) for b in found.fitting}
    few = affordable(module, groups, (), batches[:6], network)
    assert few.recovered and (len(few.judging), len(few.fitting)) == (2, 4)
    one = affordable(module, groups, (), batches[:2], network)
    assert not one.recovered and one.judging == one.fitting == batches[:2]


def test_samples_larger_than_the_example_count_as_they_are(networks, monkeypatch):
    """A dimension with a name is small where it is counted."""
    network = networks["chain"]
    module = network.build()
    groups = on_grid(find_groups(module, network).groups, 1)
    monkeypatch.setattr(effort, "BUDGET_MACS", {"cpu": 2e10})
    small, large = (
        [Batch({"x": torch.zeros(16, 3, side, side)}, None, 16) for _ in range(40)] for side in (8, 80)
    )
    assert affordable(module, groups, (), small, network).recovered
    assert not affordable(module, groups, (), large, network).recovered


def test_what_a_recovery_costs(subject):
    """Of one batch each: the statistics twice, 20 steps of three passes, the loss, and least squares per reader.

    Three plans, and two groups changed in each of two of them, have all readers of both groups.
    """
    network, module, groups, batches, macs = subject
    readers = [sum(m.axis == "in" for m in g.members) for g in groups]
    each = 2 * 20 + 3 * 20 + 8
    together = (3 + 2 * 2) * (each + 4 * sum(readers))
    passes = sum(3 * (each + 4 * count) for count in readers) + together
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "BUDGET_MACS", {"cpu": macs * 16 * passes})
        assert affordable(module, groups, (), batches, network).shares == PRUNED_SHARES
        patch.setattr(effort, "BUDGET_MACS", {"cpu": macs * 16 * passes * 0.999})
        half = affordable(module, groups, (), batches, network)
        assert half.recovered and half.shares == FEWER_SHARES
        alone = (passes - together) / 3
        patch.setattr(effort, "BUDGET_MACS", {"cpu": macs * 16 * (alone + together) * 0.999})
        assert affordable(module, groups, (), batches, network).rounds == 2
        patch.setattr(effort, "BUDGET_MACS", {"cpu": macs * 16 * (alone + together * 4 / 7) * 0.999})
        singly = affordable(module, groups, (), batches, network)
        assert singly.recovered and singly.rounds == 0
        patch.setattr(effort, "BUDGET_MACS", {"cpu": macs * 16 * alone * 0.999})
        assert not affordable(module, groups, (), batches, network).recovered


def test_a_large_model_has_fewer_samples_and_fewer_shares(subject, monkeypatch):
    network, module, groups, batches, macs = subject
    trials = 3 * len(groups)
    monkeypatch.setattr(effort, "BUDGET_MACS", {"cpu": macs * effort.PASSES * trials * 33 / effort.BARE})
    found = affordable(module, groups, (), batches, network)
    assert not found.recovered and found.shares == PRUNED_SHARES and len(found.judging) == 2
    blocks = [Block(str(i), (), ()) for i in range(trials)]  # twice as much to try
    assert len(affordable(module, groups, blocks, batches, network).judging) == 1
    monkeypatch.setattr(effort, "BUDGET_MACS", {"cpu": macs})
    found = affordable(module, groups, (), batches, network)
    assert not found.recovered and found.shares == FEWER_SHARES and len(found.judging) == 1
