"""Training that readies a network for pruning, through the train and the distill stage."""

import pytest
import torch

from deploycompress.model import checkpoint
from deploycompress.stages.distill import Distill
from deploycompress.stages.train import Train

STAGES = {"train": Train, "distill": Distill}


def filters(context, source, workdir, stage, **config):
    """The norms of the convolution's eight filters after training, ascending."""
    made = STAGES[stage](STAGES[stage].Config.model_validate({"epochs": 2, "lr": 0.05} | config))
    workdir.mkdir()
    outcome = made.run({"source": (source,), "teacher": (source,)}, workdir, context)
    module = checkpoint.load(outcome.artifacts[0].path, context.model)
    with torch.no_grad():
        return module[0].weight.flatten(1).norm(dim=1).sort().values


@pytest.mark.parametrize("stage", STAGES)
def test_channels_are_drawn_to_zero(run_context, checkpoint_of, tmp_path, stage):
    context = run_context()
    source = checkpoint_of(context)
    sgd = {"optimizer": "sgd", "weight_decay": 0.0}
    plain = filters(context, source, tmp_path / "plain", stage, **sgd)
    lasso = {"kind": "group_lasso", "strength": 0.05}
    drawn = filters(context, source, tmp_path / "lasso", stage, **sgd, regularization=lasso)
    assert drawn.sum() < 0.8 * plain.sum()
    growing = {"kind": "growing", "share": "50%", "strength": 0.1, "every": "2 steps"}
    half = filters(context, source, tmp_path / "growing", stage, **sgd, regularization=growing)
    assert half[:4].max() < 0.2 * plain[:4].max() and half[4:].min() > 0.5 * plain[4:].min()


@pytest.mark.parametrize("stage", STAGES)
def test_soft_pruning_leaves_the_weakest_filters_zero(run_context, checkpoint_of, tmp_path, stage):
    context = run_context()
    norms = filters(
        context,
        checkpoint_of(context),
        tmp_path / "soft",
        stage,
        soft_prune={"share": "25%", "every": "1 epoch"},
    )
    assert (norms == 0).sum() == 2


@pytest.mark.parametrize("more", [{"ema": 0.9}, {"keep": "best"}])
def test_so_it_does_in_an_average_and_in_an_earlier_epoch(run_context, checkpoint_of, tmp_path, more):
    """Every second epoch of three ends with open filters, and an average never has a filter of zeros."""
    context = run_context()
    soft = {"share": "25%", "every": "2 epochs"}
    source = checkpoint_of(context)
    norms = filters(context, source, tmp_path / "soft", "train", epochs=3, soft_prune=soft, **more)
    assert (norms == 0).sum() == 2


def test_a_rehearsal_changes_nothing(run_context, checkpoint_of, tmp_path):
    context = run_context(rehearsal=True)
    source = checkpoint_of(context)
    before = checkpoint.load(source.path, context.model)[0].weight.flatten(1).norm(dim=1).sort().values
    more = {"soft_prune": {"share": "50%"}, "regularization": {"kind": "group_lasso"}}
    after = filters(context, source, tmp_path / "work", "train", **more)
    assert torch.equal(before, after.requires_grad_(False))
