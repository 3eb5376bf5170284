"""The loop: it learns, says how far it is, gives the same numbers again, and stops at what is not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError, Interrupted, StageFailed
from deploycompress.recovery.evaluation import evaluate
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.recipe import Recipe, learning_rate
from deploycompress.recovery.training import fit, require_finite


def trained(net, run, **recipe):
    history = fit(net, Supervised(run.model, run.task), Recipe(**({"epochs": 3, "lr": 0.05} | recipe)), run)
    return history


def weights(net):
    return [t.clone() for t in net.state_dict().values()]


@pytest.mark.parametrize(
    "recipe", [{"optimizer": "adamw", "schedule": "cosine", "clip": 1.0}, {"optimizer": "sgd"}]
)
def test_it_learns(network, context, recipe):
    net, run = network(), context()
    before, _ = evaluate(net, run.model, run.data.loader("val"), run.task)
    history = trained(net, run, epochs=5, **recipe)
    after, scores = evaluate(net, run.model, run.data.loader("val"), run.task)
    assert before["accuracy"] < 0.6 and after["accuracy"] > 0.9 and scores.mean() == after["accuracy"]
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert history[-1]["val_accuracy"] == after["accuracy"]
    assert not net.training


def test_a_gradient_longer_than_clip_is_cut_to_it(network, context):
    moved = {}
    for clip in (1e-3, None):
        net, run = network(), context()
        before = [p.detach().clone() for p in net.parameters()]
        run = replace(run, data=OneBatch(run.data))
        trained(net, run, epochs=1, lr=1.0, clip=clip, optimizer="sgd", weight_decay=0.0, warmup=0.0)
        apart = [p.detach() - b for p, b in zip(net.parameters(), before, strict=True)]
        moved[clip] = float(torch.cat([a.flatten() for a in apart]).norm())
    # The first step with momentum 0.9 in Nesterov's form is 1.9 times the gradient.
    assert moved[1e-3] == pytest.approx(1.9e-3, rel=1e-3) and moved[None] > 0.01


class OneBatch:
    """The first training batch alone."""

    digest = "0" * 64

    def __init__(self, data):
        self.data = data

    def loader(self, split, epoch=None):
        batches = self.data.loader(split, epoch)
        return batches[:1] if split == "train" else batches


def test_it_is_a_plain_loop_in_other_clothes(network, context):
    """SGD with momentum and a linear schedule, written out, gives the same weights bit for bit."""
    net, run = network(), context()
    trained(net, run, epochs=2, lr=0.1, optimizer="sgd", weight_decay=1e-3, warmup=0.0)
    bare = network()
    decayed, others = ([p for p in bare.parameters() if (p.ndim > 1) == big] for big in (True, False))
    groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0.0}]
    optimizer, step = torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True), 0
    for epoch in range(2):
        bare.train()
        for batch in run.data.loader("train", epoch=epoch):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (12 - step) / 12
            optimizer.zero_grad()
            nn.functional.cross_entropy(bare(batch.inputs["x"]), batch.targets).backward()
            optimizer.step()
            step += 1
    assert all(map(torch.equal, weights(net), weights(bare)))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(network, context):
    results = []
    for seed in (1, 1, 2):
        net = network(dropout=0.5)
        torch.rand(len(results) + 1)  # what was drawn before does not matter
        trained(net, context(seed=seed))
        results.append(weights(net))
    assert all(map(torch.equal, results[0], results[1]))
    assert not all(map(torch.equal, results[0], results[2]))


def test_it_puts_every_setting_back(network, context):
    net = network(dropout=0.5)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    trained(net, context())
    assert torch.equal(torch.rand(1), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_each_epoch_is_an_event_with_its_numbers(network, context, events):
    trained(network(), context(events=events), epochs=2)
    assert [e.done for e in events] == [0.5, 1.0] and {e.kind for e in events} == {"progress"}
    assert [e.message for e in events] == ["epoch 1/2", "epoch 2/2"]
    assert set(events[0].figures) == {"loss", "val_accuracy", "seconds_left"}
    assert events[1].figures["seconds_left"] == 0


def test_a_rehearsal_changes_no_weight_but_goes_backward(network, context):
    net = network(norm=False)
    before = weights(net)
    assert trained(net, context(rehearsal=True)) == []
    assert all(map(torch.equal, before, weights(net)))

    class Backward(nn.Module):
        def forward(self, x):
            return Failing.apply(x @ torch.ones(8, 3, requires_grad=True))

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError("no backward here")

    net = nn.Sequential(nn.Linear(8, 8), Backward())
    with pytest.raises(NotImplementedError, match="no backward here"):
        trained(net, context(rehearsal=True))


def test_stopping_leaves_before_the_next_batch(network, context):
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        trained(network(), context(stopping=lambda: next(asked)))
    assert next(asked, None) is None


# ---------------------------------------------------------------- what is not finite


def spoiled(value, at):
    def spoil(batch, number):
        if number != at:
            return batch
        return replace(batch, inputs={"x": batch.inputs["x"] * value})

    return spoil


def test_a_loss_that_is_not_finite_stops_at_its_batch(network, context):
    with pytest.raises(StageFailed) as caught:
        trained(network(norm=False), context(spoil=spoiled(math.nan, at=4)))
    text = str(caught.value)
    assert text.startswith("epoch 1, batch 5 of 6, lr ")
    assert (
        "the loss is not finite (loss nan; gradient norm nan)" in text
        and "use a lower lr, set clip: 1.0" in text
    )


def test_a_gradient_that_is_not_finite_stops_too(network, context):
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt(x * 0)  # 0, with an infinite derivative

    net = nn.Sequential(nn.Linear(8, 3), Root())
    with pytest.raises(
        StageFailed,
        match=r"epoch 1, batch 1 of 6.*the gradient is not finite \(loss 1\.099; gradient norm nan",
    ):
        trained(net, context())


def test_divergence_stops_and_is_not_saved(network, context):
    with pytest.raises(StageFailed, match="is not finite"):
        trained(network(norm=False), context(), optimizer="sgd", lr=1e30, warmup=0.0)


def test_a_weight_that_is_not_finite_is_named(network):
    net = network()
    with torch.no_grad():
        net[4].bias[2] = math.inf
    with pytest.raises(
        StageFailed, match=r"after training, .*4\.bias.* 1 NaN or infinite .*: nothing was saved"
    ):
        require_finite(net)


def test_outputs_that_are_not_finite_are_no_accuracy(network, context):
    net, run = network(), context()
    with torch.no_grad():
        net[4].bias[0] = math.nan
    with pytest.raises(StageFailed, match=r"evaluation, batch 0: NaN or Inf in the model's output 'output'"):
        evaluate(net, run.model, run.data.loader("val"), run.task)
    assert net.training


def test_labels_out_of_range_in_a_later_batch_are_a_mistake_of_the_data(network, context):
    def spoil(batch: Batch, number: int) -> Batch:
        return replace(batch, targets=batch.targets + (7 if number == 3 else 0))

    with pytest.raises(ConfigError, match="received labels from 7 to 9; expected 0 to 2"):
        trained(network(), context(spoil=spoil))


# ---------------------------------------------------------------- the learning rate


def test_the_rate_warms_up_and_falls_to_zero():
    recipe = Recipe(lr=1.0, warmup=0.2, schedule="linear")
    rates = [learning_rate(recipe, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == pytest.approx([1 - i / 8 for i in range(8)])
    cosine = [learning_rate(recipe.model_copy(update={"schedule": "cosine"}), step, 10) for step in range(10)]
    assert cosine[2] == 1.0 and cosine[6] == pytest.approx(0.5) and 0 < cosine[9] < rates[9]


def test_one_step_in_all_is_taken_at_the_full_rate():
    assert learning_rate(Recipe(lr=0.3), 0, 1) == pytest.approx(0.3)
    assert learning_rate(Recipe(lr=0.3, warmup=0.0), 0, 1) == pytest.approx(0.3)


def test_a_recipe_refuses_what_makes_no_sense():
    for wrong in ({"lr": 0}, {"lr": math.inf}, {"epochs": 0}, {"warmup": 1}, {"clip": 0}, {"momentum": 0.9}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Recipe(**wrong)
