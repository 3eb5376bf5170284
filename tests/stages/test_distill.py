"""The distill stage: a small student learns from a larger teacher, and the figures say what it brought."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploycompress.artifact import Artifact
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.contracts import RunContext
from deploycompress.data.datasets.digits import Digits
from deploycompress.data.source import SourceData
from deploycompress.data.tasks.classification import Classification
from deploycompress.errors import ConfigError
from deploycompress.model import checkpoint
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.source import SourceModel
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.training import fit
from deploycompress.registry import load_reference
from deploycompress.stages.distill import Distill


def run_context(rehearsal=False):
    config = ModelConfig(
        build="deploycompress.examples.resnet:build",
        args={"width": 8},
        inputs={"image": InputSpec(shape=("batch", 1, 8, 8))},
    )
    model = SourceModel(config, 0)
    data = SourceData(Digits.Config(source="digits", image_size=8, augment="none"), model, 0, few=rehearsal)
    return RunContext(
        model=model,
        data=data,
        task=Classification(),
        target=TargetConfig(),
        gates={},
        store=None,
        seed=0,
        rehearsal=rehearsal,
        emit=lambda event: None,
        stopping=lambda: False,
    )


def narrowed(net):
    """Half of the channels inside the last block, as pruning leaves it."""
    block = net.layer3[0]
    block.conv1.weight = nn.Parameter(block.conv1.weight.detach()[:16].clone())
    block.conv1.out_channels = block.bn1.num_features = block.conv2.in_channels = 16
    for name in ("weight", "bias"):
        setattr(block.bn1, name, nn.Parameter(getattr(block.bn1, name).detach()[:16].clone()))
    block.bn1.running_mean, block.bn1.running_var = torch.zeros(16), torch.ones(16)
    block.conv2.weight = nn.Parameter(block.conv2.weight.detach()[:, :16].clone())
    return net


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A trained teacher, and a student made of it whose batch statistics no longer fit."""
    folder, context = tmp_path_factory.mktemp("checkpoints"), run_context()
    net = context.model.build()
    fit(net, Supervised(context.model, context.task), Recipe(epochs=5, lr=1e-2), context)
    checkpoint.save(net, folder / "teacher", context.model)
    checkpoint.save(narrowed(net), folder / "student", context.model)
    return {
        "source": (Artifact.of("prune", "checkpoint", folder / "student"),),
        "teacher": (Artifact.of("train", "checkpoint", folder / "teacher"),),
    }


def distilled(inputs, workdir, rehearsal=False, **config):
    workdir.mkdir()
    return Distill(Distill.Config(**config)).run(inputs, workdir, run_context(rehearsal))


def test_accuracy_comes_back_and_the_shape_stays(inputs, tmp_path):
    outcome = distilled(inputs, tmp_path / "work", epochs=4, lr=5e-3)
    metrics, reestimated = outcome.metrics, outcome.details["val_reestimated"]["accuracy"]
    assert (
        metrics["val_accuracy_before"] < reestimated < metrics["val_accuracy"]
        and metrics["val_accuracy"] > 0.9
    )
    assert len(outcome.details["epochs"]) == 4
    net = checkpoint.load(outcome.artifacts[0].path, run_context().model)
    assert net.layer3[0].conv1.weight.shape[0] == 16
    assert float(net.layer3[0].bn1.running_mean.abs().max()) > 0


def test_batch_statistics_are_those_of_the_final_weights(inputs, tmp_path):
    context = run_context()
    outcome = distilled(inputs, tmp_path / "work", epochs=1)
    net = checkpoint.load(outcome.artifacts[0].path, context.model)
    kept = net.layer3[0].bn1.running_mean.clone()
    reestimate_batchnorm(net, (b.inputs for b in context.data.loader("train")), context.model.call)
    assert torch.allclose(kept, net.layer3[0].bn1.running_mean, atol=1e-5)


def test_the_teacher_is_the_original_or_a_step(inputs):
    assert Distill(Distill.Config()).inputs() == {"source": "last", "teacher": "original"}
    assert Distill(Distill.Config(teacher="train")).inputs()["teacher"] == "train"


def test_temperature_and_alpha_reach_the_loss(inputs, tmp_path):
    label_only = distilled(inputs, tmp_path / "a", epochs=1, alpha=0.0)
    soft_only = distilled(inputs, tmp_path / "b", epochs=1, alpha=1.0, temperature=1.0)
    hot = distilled(inputs, tmp_path / "c", epochs=1, alpha=1.0, temperature=8.0)
    losses = [o.details["epochs"][0]["loss"] for o in (label_only, soft_only, hot)]
    assert len({round(loss, 3) for loss in losses}) == 3


def test_a_loss_of_ones_own_by_reference(inputs, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "class Squared:\n"
        "    def __init__(self, temperature):\n"
        "        self.temperature = temperature\n"
        "    def __call__(self, student, teacher, batch):\n"
        "        return ((student.main - teacher.main) ** 2).mean() / self.temperature\n"
        "def broken():\n"
        "    raise ValueError('no such thing')\n"
    )
    outcome = distilled(inputs, tmp_path / "a", epochs=1, loss=f"{own}:Squared")
    assert outcome.metrics["val_accuracy"] > 0.3
    with pytest.raises(ConfigError, match=r"distill.loss .*:broken could not be made: no such thing"):
        distilled(inputs, tmp_path / "b", loss=f"{own}:broken")
    with pytest.raises(ConfigError, match=r"unknown loss 'kdd'; known: kd"):
        distilled(inputs, tmp_path / "c", loss="kdd")


def test_a_rehearsal_goes_through_one_batch_and_saves(inputs, tmp_path):
    outcome = distilled(inputs, tmp_path / "work", rehearsal=True, epochs=1000)
    assert outcome.details["epochs"] == [] and "val_accuracy_before" in outcome.metrics
    before, after = (
        checkpoint.load(folder, run_context().model).state_dict()
        for folder in (inputs["source"][0].path, outcome.artifacts[0].path)
    )
    assert all(torch.equal(before[k], after[k]) for k in before if k.endswith(("weight", "bias")))


def test_configuration_is_read_without_a_framework():
    assert load_reference("deploycompress.stages.distill:Distill").Config(alpha=1).alpha == 1
    for wrong in ({"alpha": 1.1}, {"temperature": 0}, {"temprature": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Distill.Config(**wrong)
