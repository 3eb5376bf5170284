"""Scores in units of the loss: what goes adds up to the rise that is seen, and the order stays."""

import copy

import pytest
import torch

from deploycompress.contracts import Batch
from deploycompress.data.tasks.classification import Classification
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.pruning import losses
from deploycompress.pruning.apply import apply
from deploycompress.pruning.blocks import Block
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import ChannelGroup, choose, on_grid
from deploycompress.pruning.losses import in_loss
from deploycompress.recovery.evaluation import mean_loss


def prepared(network):
    module = network.build()
    groups = on_grid(find_groups(module, network).groups, 1)
    generator = torch.Generator().manual_seed(1)
    scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) + 0.01 for g in groups}
    batches = [Batch({"x": torch.randn(16, 3, 8, 8, generator=generator)}, None, 16) for _ in range(3)]
    return module, groups, scores, batches


def rise(network, module, batches, group, scores, width):
    pruned = copy.deepcopy(module)
    apply(pruned, [group], choose([group], scores, {group.id: width}))
    reestimate_batchnorm(pruned, [b.inputs for b in batches], network.call)
    return mean_loss(pruned, batches, Classification(), network.call, teacher=module)


def gone(group, scores, width):
    return float(scores.sum() - scores[group.keep(scores, width)].sum())


def test_what_goes_adds_up_to_the_rise_that_is_seen(networks):
    network = networks["chain"]
    module, groups, scores, batches = prepared(network)
    found = in_loss(module, groups, scores, (), batches, Classification(), network)
    for group in groups:
        widths = [round(group.width * (1 - share)) for share in losses.PRUNED_SHARES]
        seen = [rise(network, module, batches, group, scores, width) for width in widths]
        assert found[group.id].argsort().tolist() == scores[group.id].argsort().tolist()
        assert gone(group, found[group.id], widths[-1]) == pytest.approx(max(seen), rel=1e-6)
        assert gone(group, found[group.id], widths[0]) <= seen[0] * (1 + 1e-6)
    assert len(groups) == 2 and min(float(s.min()) for s in found.values()) > 0


def test_a_rise_that_is_not_finite_is_not_counted(networks):
    network = networks["chain"]
    module, groups, scores, batches = prepared(network)

    class Broken(Classification):
        calls = 0

        def loss(self, outputs, batch):
            self.calls += 1
            return super().loss(outputs, batch) * (1.0 if self.calls <= 3 or self.calls % 2 else float("inf"))

    labelled = [Batch(b.inputs, torch.zeros(16, dtype=torch.int64), 16) for b in batches]
    found = in_loss(module, groups, scores, (), labelled, Broken(), network)
    assert all(bool(found[g.id].isfinite().all()) and float(found[g.id].min()) > 0 for g in groups)


def test_a_large_model_has_fewer_samples_and_fewer_shares(networks, monkeypatch):
    network = networks["chain"]
    module, groups, _, batches = prepared(network)
    shares, few = losses._affordable(module, groups, (), batches, network)
    assert shares == losses.PRUNED_SHARES and len(few) == 3
    macs = losses.count(module, network)["macs"]
    monkeypatch.setattr(losses, "BUDGET_MACS", macs * losses.PASSES * len(groups) * 3 * 33)
    shares, few = losses._affordable(module, groups, (), batches, network)
    assert shares == losses.PRUNED_SHARES and len(few) == 2
    blocks = [Block(str(i), (), ()) for i in range(3 * len(groups))]  # twice as much to try
    assert len(losses._affordable(module, groups, blocks, batches, network)[1]) == 1
    monkeypatch.setattr(losses, "BUDGET_MACS", macs)
    shares, few = losses._affordable(module, groups, (), batches, network)
    assert shares == losses.FEWER_SHARES and len(few) == 1


def test_less_important_channels_stay_less_important():
    """The first half seems to cost more than the second: both share what they cost together."""
    group = ChannelGroup("g", 8, (), torch.zeros(8, dtype=torch.int64), (2, 4, 6, 8))
    scores = torch.arange(1.0, 9.0, dtype=torch.float64)
    factors = losses._factors(group, scores, {6: 6.0, 4: 7.0, 2: 29.0})
    assert factors == pytest.approx({6: 0.7, 4: 0.7, 2: 2.0})  # 7 over 1 + 2 + 3 + 4, then 22 over 5 + 6
    scaled = losses._scaled(group, scores, factors, 1.0)
    assert scaled.tolist() == pytest.approx([0.7, 1.4, 2.1, 2.8, 10.0, 12.0, 14.0, 16.0])
    assert losses._scaled(group, scores, {4: 0.0}, 1.0).tolist() == pytest.approx((scores * 0.1).tolist())
    assert losses._scaled(group, scores, {}, 3.0).tolist() == pytest.approx((scores * 3.0).tolist())
