"""Penalties over dependency groups, and soft pruning: formulas, and which channels they reach."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from deploycompress.errors import ConfigError, StageFailed
from deploycompress.pruning.apply import apply
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import on_grid
from deploycompress.pruning.norms import channel_squares, weakest
from deploycompress.pruning.regularization import GroupLasso, GrowingPenalty
from deploycompress.pruning.shaping import Regularization, SoftPrune, open_shaping
from deploycompress.pruning.soft import SoftPruning


def opened(given):
    module = given.build()
    return module, on_grid(find_groups(module, given).groups, 1)


def test_a_channels_norm_is_that_of_everything_that_pruning_takes_away(network):
    """Over any coupling: what the model loses with a channel is what the channel's square counts."""
    module, groups = opened(network)
    group = groups[0]
    squares = channel_squares(module, group)
    assert squares.shape == (group.width,) and squares.requires_grad
    before = sum(p.square().sum().item() for p in module.parameters())
    gone = weakest(group, squares.sqrt(), 0.5)
    everything = torch.arange(group.width)
    apply(module, [group], {group.id: everything[~torch.isin(everything, gone)]})
    after = sum(p.square().sum().item() for p in module.parameters())
    assert before - after == pytest.approx(squares[gone].sum().item(), rel=1e-4)


def test_weakest_takes_the_least_and_as_many_as_the_grid_allows(networks):
    _, groups = opened(networks["residual"])
    group = next(g for g in groups if g.width == 16)
    norms = torch.arange(16.0).flip(0)
    assert weakest(group, norms, 0.25).tolist() == [12, 13, 14, 15]
    assert len(weakest(group, norms, 1.0)) == 14  # an eighth of a group is always kept
    _, groups = opened(networks["split"])
    halves = next(g for g in groups if g.segment_count == 2)
    assert weakest(halves, torch.arange(16.0), 0.25).tolist() == [0, 1, 8, 9]  # equally many of both


def test_group_lasso_is_the_sum_of_the_channels_norms(networks):
    module, groups = opened(networks["chain"])
    (value,) = GroupLasso(module, groups, 0.5)().values()
    first, norm, second = module[0], module[1], module[3]
    by_hand = 0.0
    for c in range(16):
        parts = [first.weight[c], norm.weight[c], norm.bias[c], second.weight[:, c]]
        by_hand += sum(p.square().sum() for p in parts).sqrt().item()
    for c in range(24):
        parts = [second.weight[c], second.bias[c], module[4].weight[c], module[7].weight[:, c]]
        by_hand += sum(p.square().sum() for p in parts).sqrt().item()
    assert value.item() == pytest.approx(0.5 * by_hand, rel=1e-5)
    value.backward()
    assert module[7].bias.grad is None and first.weight.grad.abs().sum() > 0


def test_a_channel_that_is_zero_has_no_gradient_and_no_nan(networks):
    module, groups = opened(networks["chain"])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    sum(GroupLasso(module, groups, 1.0)().values()).backward()
    assert module[0].weight.grad.abs().max() == 0


def test_a_growing_penalty_reaches_the_weakest_and_grows_to_its_ceiling(networks):
    module, groups = opened(networks["chain"])
    group = groups[0]
    penalty = GrowingPenalty(module, groups[:1], share=0.5, strength=0.1, every=2, ceiling=0.25)
    norms = channel_squares(module, group).sqrt()
    going = penalty.going[group.id]
    assert len(going) == 8 and norms[going].max() < norms[~torch.isin(torch.arange(16), going)].min()
    factors = []
    for _ in range(6):
        factors.append(penalty.factor)
        value = penalty()["growing"]
    assert factors == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.25, 0.25])
    assert value.item() == pytest.approx(0.25 / 2 * norms[going].square().sum().item(), rel=1e-5)
    value.backward()
    assert torch.allclose(module[0].weight.grad[going], 0.25 * module[0].weight[going])
    stays = [c for c in range(16) if c not in going.tolist()]
    assert module[0].weight.grad[stays].abs().max() == 0


def test_soft_pruning_closes_the_weakest_filters_and_they_may_come_back(networks):
    given = networks["chain"]
    module, groups = opened(given)
    torch.nn.init.constant_(module[1].bias, 0.1)  # at exactly zero no gradient passes the ReLU
    soft = SoftPruning(module, groups, share=0.5, every=2, epochs=5)
    before = module[0].weight.detach().clone()
    soft(1)
    assert torch.equal(module[0].weight, before)
    soft(2)
    closed = module[0].weight.flatten(1).abs().sum(1) == 0
    norms = before.flatten(1).norm(dim=1)
    assert closed.sum() == 8 and norms[closed].max() < norms[~closed].min()
    assert module[1].weight.abs().min() > 0 and module[3].weight[:, closed].abs().sum() > 0
    module.train()
    given.call(module, given.example(4))["output"].square().sum().backward()
    assert (module[0].weight.grad[closed].flatten(1).abs().sum(1) > 0).all()
    with torch.no_grad():
        module[0].weight[closed] = before[closed] + 100.0
        soft(4)
    assert (module[0].weight.flatten(1).abs().sum(1) == 0).sum() == 8
    assert module[0].weight[closed].abs().min() > 0  # they came back, and others went
    with torch.no_grad():
        module[0].weight.fill_(1.0)
    soft(5)
    assert (module[0].weight.flatten(1).abs().sum(1) == 0).sum() == 8  # the last epoch, whatever `every` says


def test_soft_pruning_in_every_kind_of_layer(network):
    module, groups = opened(network)
    soft = SoftPruning(module, groups, share=0.5, every=1, epochs=1)
    soft(1)
    for group in groups:
        producer = module.get_submodule(group.id)
        dim = 1 if isinstance(producer, nn.ConvTranspose2d) else 0
        weight = producer.weight
        if dim == 1:
            weight = weight.reshape(producer.groups, -1, *weight.shape[1:]).transpose(1, 2)
            weight = weight.reshape(group.width, -1)
        closed = weight.flatten(1).abs().sum(1) == 0
        assert closed.sum() == group.width // 2
        assert producer.bias is None or (producer.bias[closed] == 0).all()


def test_settings_become_hooks(networks):
    given = networks["chain"]
    module = given.build()
    none = open_shaping(module, given, 3, None, None)
    assert none.penalty is None and none.after_epoch is None
    growing = Regularization(kind="growing", share="25%", every="3 steps", exclude=["3"])
    both = open_shaping(module, given, 3, growing, SoftPrune(share=0.5, every="2 epochs"))
    assert {id: len(c) for id, c in both.penalty.going.items()} == {"0": 4}
    assert both.after_epoch._every == 2
    lasso = open_shaping(module, given, 3, Regularization(kind="group_lasso"), None)
    assert set(lasso.penalty()) == {"group_lasso"}
    with pytest.raises(
        StageFailed, match=r"soft_prune: no channels of the model can be pruned \(0: excluded"
    ):
        open_shaping(module, given, 3, None, SoftPrune(share=0.5, exclude=["*"]))


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (Regularization, {"kind": "group_lasso", "share": "50%"}, "group_lasso takes no share"),
        (Regularization, {"kind": "group_lasso", "ceiling": 1}, "group_lasso takes no ceiling"),
        (Regularization, {"kind": "growing"}, "growing needs a share"),
        (Regularization, {"kind": "l1"}, "Input should be 'group_lasso' or 'growing'"),
        (Regularization, {"kind": "growing", "share": "50%", "every": "1 epoch"}, "unknown unit 'epoch'"),
        (Regularization, {"kind": "growing", "share": "50%", "every": "1.5 steps"}, "must be a whole number"),
        (SoftPrune, {}, "Field required"),
        (SoftPrune, {"share": "100%"}, "share 100% leaves no channel; expected less"),
        (SoftPrune, {"share": "30%", "every": 1}, "the unit is missing; expected a quantity such as 1 epoch"),
        (SoftPrune, {"share": "30%", "every": "0 epochs"}, "must be more than 0"),
    ],
)
def test_mistakes_in_the_configuration(model, config, message):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(config)
    assert message in str(caught.value)


def test_options_that_would_do_nothing_are_refused(networks):
    network = networks["chain"]
    module = network.build()
    soft = SoftPrune.model_validate({"share": "1%"})
    growing = Regularization.model_validate({"kind": "growing", "share": "1%"})
    for options in ((None, soft), (growing, None)):
        with pytest.raises(
            StageFailed, match=r"a share of 0.01 is less than half a channel of every group.* has 24"
        ):
            open_shaping(module, network, 4, *options)
    elsewhere = SoftPrune.model_validate({"share": "50%", "exclude": ["hed"]})
    with pytest.raises(
        ConfigError, match=r"soft_prune.exclude: received 'hed', which no layer is called; .*has 0, 1, 2"
    ):
        open_shaping(module, network, 4, None, elsewhere)
