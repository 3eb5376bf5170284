"""What goes wrong in a training is found at its step, and mended where that was asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from deploycompress.engine.store import FileStore
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.processes import Processes
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.training import fit


@pytest.fixture
def run(context, tmp_path, events):
    """A run that may keep checkpoints."""
    return replace(context(events=events), store=FileStore(tmp_path), step="b" * 64)


class Once:
    """The task's loss, but what ``spoil`` makes of it at the given calls (from 0)."""

    def __init__(self, run, at, spoil):
        self.inner, self.at, self.spoil, self.calls = Supervised(run.model, run.task), at, spoil, 0

    def __call__(self, student, batch):
        terms = self.inner(student, batch)
        self.calls += 1
        return {"loss": self.spoil(terms["loss"])} if self.calls - 1 in self.at else terms


# ---------------------------------------------------------------- not finite, diverged


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_roll_back_takes_the_epoch_again_with_half_the_rate(network, run, events, value):
    net, objective = network(), Once(run, {8}, lambda loss: loss * value)
    recipe = Recipe(epochs=3, lr=0.05, on_divergence="roll_back")
    history = fit(net, objective, recipe, run)
    warning = next(e.message for e in events if e.kind == "warning")
    assert warning.startswith("epoch 2, batch 3 of 6, lr ") and "the loss is not finite" in warning
    assert "back to the beginning of the epoch with 0.5 of the rate" in warning
    assert objective.calls == 18 + 3
    assert [h["epoch"] for h in history] == [1, 2, 3] and [h.get("rolled_back") for h in history] == [
        None,
        1,
        1,
    ]
    assert history[-1]["val_accuracy"] > 0.8

    undisturbed, first = network(), replace(run, step="c" * 64)
    fit(undisturbed, Supervised(run.model, run.task), recipe, first)
    assert not torch.equal(undisturbed[0].weight, net[0].weight), (
        "the rate is another one after the roll-back"
    )


@pytest.mark.parametrize(("rate", "bad"), [(0.05, 8), ("auto", 60)])  # in the second epoch, in the probe
def test_scaled_gradients_are_taken_up_again_after_a_divergence(network, run, events, monkeypatch, rate, bad):
    """As of float16, in which no processor trains: the scale is the same, and what was scaled back is forgotten."""
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    monkeypatch.setattr(Processes, "scaler", scaler)
    monkeypatch.setattr(Processes, "backward", lambda self, loss: scaler.scale(loss).backward())
    objective = Once(run, {bad}, lambda loss: loss * math.nan)
    history = fit(network(), objective, Recipe(epochs=3, lr=rate, on_divergence="roll_back"), run)
    assert len(history) == 3 and history[-1]["loss"] < history[0]["loss"] and scaler.get_scale() == 64.0
    rolled = [event for event in events if "back to the beginning of the epoch" in event.message]
    assert len(rolled) == (rate != "auto")


def test_what_the_bad_steps_left_is_gone(network, run):
    """NaN in the batch statistics and in the weights' gradients would stay; the restored state has none."""
    seen = []

    def spoil(loss):
        seen.append(net[1].running_mean.clone())
        net[1].running_mean.data.fill_(math.nan)  # behind the back of autograd
        return loss * math.nan

    net = network()
    fit(net, Once(run, {2}, spoil), Recipe(epochs=1, lr=0.05, on_divergence="roll_back"), run)
    assert seen and net[1].running_mean.isfinite().all()


def test_it_is_rolled_back_three_times_at_most(network, run):
    objective = Once(run, set(range(7, 10**4)), lambda loss: loss * math.nan)
    with pytest.raises(StageFailed, match=r"epoch 2, batch 1 of 6.*not finite"):
        fit(network(), objective, Recipe(epochs=2, on_divergence="roll_back"), run)
    assert objective.calls == 6 + 2 + 3 * 1  # the calls after the first roll-back fail at once


def test_an_explosion_is_found_before_it_is_infinite(network, run):
    scale = iter([1.0] * 12 + [10.0 ** (k + 2) for k in range(30)])
    objective = Once(run, set(range(40)), lambda loss: loss * next(scale))
    with pytest.raises(
        StageFailed, match=r"epoch 3, batch \d of 6.*training diverges: the loss is .* in the first ones"
    ):
        fit(network(), objective, Recipe(epochs=5, lr=1e-6), run)


def test_a_teacher_that_was_met_exactly_is_no_divergence(network, run):
    """A loss that begins at nothing may grow a thousandfold and still be small."""
    scale = iter([1e-9] * 12 + [1e-3] * 24)
    fit(network(), Once(run, set(range(36)), lambda loss: loss * next(scale)), Recipe(epochs=6, lr=1e-3), run)


def test_a_network_with_a_buffer_that_is_not_finite_does_not_leave(network, run):
    net = network()
    net.register_buffer("scale", torch.tensor([1.0, math.inf]))
    with pytest.raises(StageFailed, match=r"after training, tensor scale has 1 NaN or infinite values of 2"):
        fit(net, Supervised(run.model, run.task), Recipe(epochs=1), run)


# ---------------------------------------------------------------- out of memory


class Small(nn.Module):
    """A network that has no memory for more than ``most`` samples in training."""

    def __init__(self, net, most, error=torch.OutOfMemoryError):
        super().__init__()
        self.net, self.most, self.error, self.sizes = net, most, error, []

    def forward(self, x):
        if self.training:
            out = self.net[:2](x)  # batch statistics have moved when it fails
            if len(x) > self.most:
                raise self.error("can't allocate memory: you tried to allocate 64 bytes")
            self.sizes.append(len(x))
            return self.net[2:](out)
        return self.net(x)


def test_out_of_memory_is_named(network, run):
    with pytest.raises(StageFailed, match=r"epoch 1, batch 1 of 6, lr .*: out of memory with 16 samples on cpu; "
                       r"set on_out_of_memory: split, or use a smaller data.batch_size with accumulate"):  # fmt: skip
        fit(Small(network(), 8), Supervised(run.model, run.task), Recipe(epochs=1), run)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_in_parts_has_the_same_gradient(network, run, error):
    recipe = Recipe(epochs=2, lr=0.05, on_out_of_memory="split", optimizer="sgd")
    whole = network(norm=False)
    fit(whole, Supervised(run.model, run.task), recipe, replace(run, step="c" * 64))
    small = Small(network(norm=False), 5, error)
    history = fit(small, Supervised(run.model, run.task), recipe, run)
    assert set(small.sizes) == {4} and [h["pieces"] for h in history] == [3, 3]
    for one, other in zip(whole.parameters(), small.net.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_failed_attempt_leaves_no_trace_in_the_statistics(network, run):
    recipe = Recipe(epochs=1, lr=1e-12, weight_decay=0, on_out_of_memory="split")
    small, halves = Small(network(), 8), network()
    fit(small, Supervised(run.model, run.task), recipe, run)
    halves.train()
    with torch.no_grad():
        for batch in run.data.loader("train", epoch=0):
            for half in batch.inputs["x"].split(8):
                halves(half)
    assert torch.allclose(small.net[1].running_mean, halves[1].running_mean, atol=1e-5)
    assert small.net[1].num_batches_tracked == 12


def test_memory_that_runs_out_in_the_update_is_named(network, run, monkeypatch):
    def step(self, closure=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(
        StageFailed, match=r"epoch 1, batch 1 of 6, lr .*: out of memory in the optimizer's update"
    ):
        fit(network(), Supervised(run.model, run.task), Recipe(epochs=1), run)


def test_parts_do_not_become_too_small(network, run):
    recipe = Recipe(epochs=1, on_out_of_memory="split")
    with pytest.raises(StageFailed, match="its parts of 2 samples cannot be made smaller"):
        fit(Small(network(), 0), Supervised(run.model, run.task), recipe, run)


def test_other_errors_are_not_taken_for_it(network, run):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    net = nn.Sequential(network(), nn.Identity())
    net.forward = lambda x: Broken()(x) if net.training else net[0](x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(net, Supervised(run.model, run.task), Recipe(epochs=1, on_out_of_memory="split"), run)


# ---------------------------------------------------------------- data


class Given:
    digest = "0" * 64

    def __init__(self, data, split, batches):
        self.data, self.split, self.batches = data, split, batches

    def loader(self, split, epoch=None):
        return self.batches if split == self.split else self.data.loader(split, epoch)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_batch_is_refused_before_the_first_step(network, run, split):
    objective = Once(run, (), None)
    with pytest.raises(
        ConfigError, match=f"data, split {split}: there is no batch in it; expected at least one"
    ):
        fit(network(), objective, Recipe(), replace(run, data=Given(run.data, split, [])))
    assert objective.calls == 0


def test_labels_of_the_validation_split_are_looked_at_before_the_first_step(network, run):
    batch = run.data.loader("val")[0]
    wrong = replace(batch, targets=batch.targets + 5)
    objective = Once(run, (), None)
    with pytest.raises(ConfigError, match="received labels from 5 to 7; expected 0 to 2"):
        fit(network(), objective, Recipe(), replace(run, data=Given(run.data, "val", [wrong])))
    assert objective.calls == 0


def test_a_loader_that_is_shorter_than_it_says_is_refused(network, run):
    class Liar(list):
        def __len__(self):
            return 6

    with pytest.raises(ConfigError, match="an epoch gave no batch, though the loader has a length"):
        fit(network(), Once(run, (), None), Recipe(), replace(run, data=Given(run.data, "train", Liar())))
