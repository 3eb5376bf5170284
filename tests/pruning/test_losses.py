"""Scores in units of the loss: what goes adds up to the rise that is seen, and the order stays."""

import copy

import pytest
import torch

from deploycompress.contracts import Batch
from deploycompress.data.tasks.classification import Classification
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.pruning import losses
from deploycompress.pruning.apply import apply
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.effort import PRUNED_SHARES
from deploycompress.pruning.groups import ChannelGroup, choose, on_grid
from deploycompress.pruning.losses import in_loss
from deploycompress.pruning.rises import RecoveredRises
from deploycompress.recovery.evaluation import mean_loss


def prepared(network, count=2):  # too few batches for recovery
    module = network.build()
    with torch.no_grad():  # an answer that one can tell from another
        module[-1].weight.mul_(20)
    groups = on_grid(find_groups(module, network).groups, 1)
    generator = torch.Generator().manual_seed(1)
    scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) + 0.01 for g in groups}
    batches = [Batch({"x": torch.randn(16, 3, 8, 8, generator=generator)}, None, 16) for _ in range(count)]
    reestimate_batchnorm(module, [b.inputs for b in batches], network.call)
    return module, groups, scores, batches


def rise(network, module, batches, group, scores, width):
    pruned = copy.deepcopy(module)
    apply(pruned, [group], choose([group], scores, {group.id: width}))
    found = []
    for net in (pruned, copy.deepcopy(module)):
        reestimate_batchnorm(net, [b.inputs for b in batches], network.call)
        found.append(mean_loss(net, batches, Classification(), network.call, teacher=module))
    return found[0] - found[1]


def gone(group, scores, width):
    return float(scores.sum() - scores[group.keep(scores, width)].sum())


def test_what_goes_adds_up_to_the_rise_that_is_seen(networks):
    network = networks["chain"]
    module, groups, scores, batches = prepared(network)
    found = in_loss(module, groups, scores, (), batches, Classification(), network).scores
    for group in groups:
        widths = [round(group.width * (1 - share)) for share in PRUNED_SHARES]
        seen = [rise(network, module, batches, group, scores, width) for width in widths]
        assert found[group.id].argsort().tolist() == scores[group.id].argsort().tolist()
        least = losses.LEAST_FACTOR  # what was not seen to rise counts a little
        assert max(seen) * (1 - 1e-6) <= gone(group, found[group.id], widths[-1]) <= max(seen) * (1 + least)
        assert gone(group, found[group.id], widths[0]) <= seen[0] * (1 + least)
    assert len(groups) == 2 and min(float(s.min()) for s in found.values()) > 0


def test_with_more_batches_it_is_the_rise_after_recovery(networks):
    network = networks["chain"]
    module, groups, scores, batches = prepared(network, 9)
    task = Classification()
    rises = RecoveredRises(module, batches[3:], batches[:3], task, network)

    def trial(group, share):
        width = round(group.width * (1 - share))
        kept, pruned = choose([group], scores, {group.id: width}), copy.deepcopy(module)
        apply(pruned, [group], kept)
        return pruned, [group], kept

    assert rises.find_rate(*trial(groups[1], PRUNED_SHARES[-1]))[0] > 0
    told = []
    recovered = in_loss(
        module, groups, scores, (), batches, task, network, lambda done, message: told.append((done, message))
    )
    found = recovered.scores
    for group in groups:
        seen = [rises.of(*trial(group, share)) for share in PRUNED_SHARES]
        width = round(group.width * (1 - PRUNED_SHARES[-1]))
        least = losses.LEAST_FACTOR
        assert max(seen) * (1 - 1e-6) <= gone(group, found[group.id], width) <= max(seen) * (1 + least)
    halves = {g.id: g.width // 2 for g in groups}
    kept, pruned = choose(groups, scores, halves), copy.deepcopy(module)
    apply(pruned, groups, kept)
    assert recovered.of_plan(halves) == pytest.approx(rises.of(pruned, groups, kept), rel=1e-6)
    assert recovered.rounds == 3
    most = 3 * 2 + 3 + 2 * 2  # two groups' shares, three plans, and two of them with each group changed
    assert told == [(n / most, f"trial {n + 1} of at most {most}") for n in range(3 * 2 + 1)]
    assert in_loss(module, groups, scores, (), batches[:2], task, network).rounds == 0


def test_a_rise_that_is_not_finite_is_not_counted(networks):
    network = networks["chain"]
    module, groups, scores, batches = prepared(network)

    class Broken(Classification):
        calls = 0

        def loss(self, outputs, batch):
            self.calls += 1
            return super().loss(outputs, batch) * (1.0 if self.calls <= 2 or self.calls % 2 else float("inf"))

    labelled = [Batch(b.inputs, torch.zeros(16, dtype=torch.int64), 16) for b in batches]
    found = in_loss(module, groups, scores, (), labelled, Broken(), network).scores
    assert all(bool(found[g.id].isfinite().all()) and float(found[g.id].min()) > 0 for g in groups)


def test_less_important_channels_stay_less_important():
    """The first half seems to cost more than the second: both share what they cost together."""
    group = ChannelGroup("g", 8, (), torch.zeros(8, dtype=torch.int64), (2, 4, 6, 8))
    scores = torch.arange(1.0, 9.0, dtype=torch.float64)
    parts = losses._parts(group, scores, {6: 6.0, 4: 7.0, 2: 29.0})
    assert [(p.channels.tolist(), p.lost, p.risen) for p in parts] == [
        ([0, 1], 3.0, 6.0),
        ([2, 3], 7.0, 1.0),
        ([4, 5], 11.0, 22.0),
    ]
    assert losses._factors(parts) == pytest.approx(
        [0.7, 0.7, 2.0]
    )  # 7 over 1 + 2 + 3 + 4, then 22 over 5 + 6
    scaled = losses._scaled(group, scores, parts, 1.0)
    evenly = [1.75] * 4 + [11.0] * 4  # 7 over four channels, then 22 over two
    by_score = [0.7, 1.4, 2.1, 2.8, 10.0, 12.0, 14.0, 16.0]
    assert scaled.tolist() == pytest.approx([(a + b) / 2 for a, b in zip(evenly, by_score, strict=True)])


def test_channels_whose_loss_was_not_seen_to_rise_are_worth_something():
    group = ChannelGroup("g", 8, (), torch.zeros(8, dtype=torch.int64), (4, 8))
    scores = torch.arange(1.0, 9.0, dtype=torch.float64)
    free = losses._scaled(group, scores, losses._parts(group, scores, {4: 0.0}), 1.0)
    assert free.tolist() == pytest.approx((scores * 0.05).tolist())
    assert losses._scaled(group, scores, [], 3.0).tolist() == pytest.approx((scores * 3.0).tolist())
    dead = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    found = losses._scaled(group, dead, losses._parts(group, dead, {4: 0.0}), 1.0)
    assert found.isfinite().all() and found[:4].max() < found[4:].min()


def test_channels_without_a_score_share_their_rise_evenly(networks):
    """As those of a head that the task does not read, of which an update says nothing."""
    network = networks["chain"]
    module, groups, scores, batches = prepared(network)
    dead = groups[0]
    scores = scores | {dead.id: torch.zeros(dead.width, dtype=torch.float64)}
    found = in_loss(module, groups, scores, (), batches, Classification(), network).scores
    assert all(bool(found[g.id].isfinite().all()) and float(found[g.id].min()) >= 0 for g in groups)
    narrow = round(dead.width * (1 - PRUNED_SHARES[-1]))
    seen = rise(network, module, batches, dead, scores, narrow)
    assert gone(dead, found[dead.id], narrow) == pytest.approx(seen, rel=0.2)


def test_amounts_keep_their_order():
    assert losses._amounts(torch.tensor([3.0, 1.0])).tolist() == [3.0, 1.0]
    assert losses._amounts(torch.tensor([-3.0, 1.0])).tolist() == [0.0, 4.0]
    assert losses._amounts(torch.tensor([0.0, 0.0])).tolist() == [1.0, 1.0]
    assert losses._amounts(torch.tensor([-2.0, -2.0])).tolist() == [1.0, 1.0]


def test_a_width_at_which_the_loss_is_not_finite_is_forbidden(networks, monkeypatch):
    network = networks["chain"]
    module, groups, scores, batches = prepared(network)
    narrow = {g.id: round(g.width * (1 - PRUNED_SHARES[-1])) for g in groups}
    real = losses.Rises.of

    def of(self, changed, cut=(), kept=None):
        (group,) = cut
        left = len(kept[group.id])
        return (
            float("nan")
            if group is groups[0] and left == narrow[group.id]
            else real(self, changed, cut, kept)
        )

    monkeypatch.setattr(losses.Rises, "of", of)
    found = in_loss(module, groups, scores, (), batches, Classification(), network).scores
    tried = round(groups[0].width * (1 - PRUNED_SHARES[1]))
    assert gone(groups[0], found[groups[0].id], narrow[groups[0].id]) > losses.FORBIDDING / 2
    assert gone(groups[0], found[groups[0].id], tried) < 0.1 * losses.FORBIDDING
