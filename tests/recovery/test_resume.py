"""A training that was cut anywhere and goes on ends as one that was not, bit by bit."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from deploycompress.engine.store import FileStore
from deploycompress.errors import Interrupted
from deploycompress.model.sparse import mark_sparse
from deploycompress.pruning.groups import ChannelGroup, on_grid
from deploycompress.recovery import probing
from deploycompress.recovery.checkpoints import Checkpoint, Checkpoints
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.training import fit

STEPS = 12  # two epochs of six batches


class Counting:
    """An objective with everything that may be kept: a module of its own, a number of its own, the share done."""

    def __init__(self, run):
        self.inner = Supervised(run.model, run.task)
        torch.manual_seed(5)
        self.trainable = nn.Linear(3, 3)
        self.calls, self.shares = 0, []

    def __call__(self, student, batch):
        outputs = student(batch.inputs["x"])
        self.calls += 1
        noise = torch.randn(())  # of the step, and of nothing before it
        own = nn.functional.cross_entropy(self.trainable(outputs), batch.targets)
        return {
            **self.inner(student, batch),
            "own": own * (1 + 0.1 * self.calls),
            "noise": noise * outputs.mean(),
        }

    def progress(self, done):
        self.shares.append(done)

    def state(self):
        return {"calls": self.calls}

    def restore(self, state):
        self.calls = state["calls"]


RECIPES = {
    "adamw": {"ema": 0.9, "keep": "best", "clip": 1.0},
    "sgd": {"optimizer": "sgd", "schedule": "cosine", "accumulate": 4},
    "auto": {"lr": "auto", "patience": 5},
    "norms": {"trainable": ("norms", "4.*")},
}


def trained(network, run, stop_at=None, **recipe):
    """The network and the history of a run that is told to stop before its step ``stop_at``, and then goes on."""
    asked = iter(range(10**6))
    stopping = (lambda: next(asked) == stop_at) if stop_at is not None else (lambda: False)
    settings = Recipe(**({"epochs": 2, "lr": 0.05, "checkpoint_every": "5 steps"} | recipe))
    for attempt in (replace(run, stopping=stopping), run):
        net = network(dropout=0.3)
        mark_sparse(net, ["0.weight"])
        with torch.no_grad():
            net[0].weight[:, 3] = 0
        objective = Counting(run)

        def shaped(epoch, net=net):
            with torch.no_grad():
                net[0].bias.add_(0.01 * epoch)

        try:
            history = fit(net, objective, settings, attempt, shaped)
        except Interrupted:
            continue
        return net, objective, history, attempt is run and stop_at is not None
    raise AssertionError("it was interrupted twice")


def stored(context, folder, **more):
    return replace(context(**more), store=FileStore(folder), step="a" * 64)


@pytest.mark.parametrize("name", RECIPES)
def test_cut_before_any_step_it_ends_bit_identical(network, context, tmp_path, monkeypatch, name):
    monkeypatch.setattr(probing, "STEPS", 12)
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: None
    )  # nobody pulls the plug here, and it takes the time
    recipe = RECIPES[name]
    whole, objective, history, _ = trained(network, stored(context, tmp_path / "whole"), **recipe)
    stops = 0
    every = name in ("adamw", "sgd")  # for the others some places do
    for stop_at in range(0, 1000, 1 if every else 7):
        events = []
        run = stored(context, tmp_path / f"cut-{stop_at}", events=events)
        net, other, same, cut = trained(network, run, stop_at, **recipe)
        assert all(map(torch.equal, whole.state_dict().values(), net.state_dict().values())), stop_at
        assert all(
            map(torch.equal, objective.trainable.state_dict().values(), other.trainable.state_dict().values())
        )
        assert history == same and objective.calls == other.calls
        assert not (net[0].weight[:, 3] != 0).any()
        if not cut:
            break
        stops += any("goes on" in e.message for e in events)
    steps = 4 if name == "sgd" else STEPS
    assert stops == steps + 2 * 6 if every else stops >= 3, (
        "every step, and every batch of every validation, was a place to be cut at"
    )


def test_without_a_checkpoint_it_would_not_be_identical(network, context, tmp_path):
    """The test above can fail: a checkpoint without the optimiser's state gives other weights."""
    run = stored(context, tmp_path)
    whole, *_ = trained(network, run)
    place = Checkpoints(
        run.store.checkpoints(run.step) / "training" / "last", pytest.fail, training=f"{run.step}/training"
    )
    latest, before = (place.load(step) for step in place.steps())
    assert (latest.step, before.step) == (12, 10)
    place.forget_after(10)
    place.save(
        Checkpoint(10, {k: v for k, v in before.tensors.items() if "optimizer" not in k}, before.state)
    )
    other = trained(network, run)[0]
    assert not torch.equal(whole[0].weight, other[0].weight)


def test_it_goes_on_from_where_it_was_and_does_not_begin_again(network, context, tmp_path):
    asked = iter(range(100))
    run = stored(context, tmp_path)
    recipe = Recipe(epochs=2, lr=0.05)
    with pytest.raises(Interrupted):
        fit(network(), Counting(run), recipe, replace(run, stopping=lambda: next(asked) == 13))
    objective, events = Counting(run), []
    fit(network(), objective, recipe, replace(run, emit=events.append))
    assert (
        events[0].message == "training goes on after step 7 of 12"
    )  # 12 questions for the first epoch and its validation
    assert objective.shares == [step / 12 for step in range(7, 12)]
    again, events = Counting(run), []
    assert len(fit(network(), again, recipe, replace(run, emit=events.append))) == 2
    assert again.shares == [], "what is finished, and was not published, is not trained again"


def test_the_growth_of_a_penalty_is_kept(network, context, tmp_path):
    from deploycompress.pruning.regularization import GrowingPenalty

    def result(folder, stop_at):
        asked = iter(range(1000))
        run = stored(context, tmp_path / folder)
        for stopping in (lambda: next(asked) == stop_at, lambda: False):
            net = network(norm=False)
            penalty = GrowingPenalty(net, hidden(net), 0.5, 0.05, 2, 1.0)
            try:
                fit(net, Supervised(run.model, run.task), Recipe(epochs=1, lr=0.05),
                    replace(run, stopping=stopping), None, penalty)  # fmt: skip
            except Interrupted:
                continue
            return penalty.factor, net[0].weight
        raise AssertionError

    whole, cut = result("whole", None), result("cut", 4)
    assert whole[0] == cut[0] == 0.05 * 4 and torch.equal(whole[1], cut[1])


def hidden(net) -> tuple[ChannelGroup, ...]:
    from deploycompress.config.schema import InputSpec, ModelConfig
    from deploycompress.model.source import SourceModel
    from deploycompress.pruning.discovery import find_groups

    class Given(SourceModel):
        def build(self):
            return net

    model = Given(ModelConfig(build="x:y", inputs={"x": InputSpec(shape=("batch", 8))}), 0)
    return on_grid(find_groups(net, model).groups, align=1)


# ---------------------------------------------------------------- the files


@pytest.fixture
def place(tmp_path):
    """Three saved; the first is gone."""
    said = []
    checkpoints = Checkpoints(tmp_path / "last", said.append)
    for step in (5, 10, 15):
        checkpoints.save(Checkpoint(step, {"w": torch.arange(200) + step}, {"step": step}))
    return checkpoints, tmp_path / "last", said


def test_the_last_two_are_kept_and_nothing_half_written(place):
    checkpoints, folder, said = place
    assert sorted(p.name for p in folder.iterdir()) == ["step-0000000010", "step-0000000015"]
    found = checkpoints.newest()
    assert (
        found.step == 15
        and found.state == {"step": 15}
        and torch.equal(found.tensors["w"], torch.arange(200) + 15)
    )
    assert {p.name for p in (folder / "step-0000000015").iterdir()} == {"tensors.safetensors", "state.json"}
    (folder / ".writing-abc").mkdir()
    Checkpoints(folder, said.append)
    assert not (folder / ".writing-abc").exists() and said == []


def test_a_damaged_one_is_told_and_the_one_before_is_used(place):
    """Every byte position class: cut short at many lengths, and a bit flipped at many places, in both files."""
    checkpoints, folder, said = place
    latest = folder / "step-0000000015"
    kept = {p.name: p.read_bytes() for p in latest.iterdir()}
    for name in ("tensors.safetensors", "state.json"):
        whole = kept[name]
        for at in range(0, len(whole) - 1, max(1, len(whole) // 40)):
            flipped = bytearray(whole)
            flipped[at] ^= 4
            for contents in (whole[:at], bytes(flipped)):
                (latest / name).write_bytes(contents)
                same = name == "state.json" and _means_the_same(contents, whole)
                assert same or checkpoints.newest().step == 10, (name, at)
                if not same:
                    assert "checkpoint of step 15 is damaged" in said.pop() and not latest.exists()
                latest.mkdir(exist_ok=True)
                for file, before in kept.items():
                    (latest / file).write_bytes(before)
    assert checkpoints.newest().step == 15 and said == []
    for step in (10, 15):
        (folder / f"step-{step:010d}" / "state.json").unlink()
    assert checkpoints.newest() is None and len(said) == 2


def _means_the_same(contents: bytes, whole: bytes) -> bool:
    try:
        return json.loads(contents) == json.loads(whole)
    except ValueError:
        return False


def test_one_of_another_step_or_training_is_not_used(place, tmp_path):
    checkpoints, folder, said = place
    aside = folder / "aside"
    (folder / "step-0000000015").rename(aside)
    (folder / "step-0000000010").rename(folder / "step-0000000015")
    aside.rename(folder / "step-0000000010")
    assert checkpoints.newest() is None and len(said) == 2 and "of another step or training" in said[0]
    other = Checkpoints(tmp_path / "last", said.append, training="b")
    checkpoints.save(Checkpoint(20, {"w": torch.zeros(1)}, {}))
    assert other.newest() is None and len(said) == 3


def test_tensors_that_share_memory_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, pytest.fail)
    base = torch.arange(10.0)
    checkpoints.save(Checkpoint(1, {"a": base[2:], "b": base[:5], "c": base.view(2, 5).t()}, {}))
    tensors = checkpoints.newest().tensors
    assert torch.equal(tensors["a"], base[2:]) and torch.equal(tensors["c"], base.view(2, 5).t())
