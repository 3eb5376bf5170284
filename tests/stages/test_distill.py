"""The distill stage: a small student learns from a larger teacher, and the figures say what it brought."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploycompress.artifact import Artifact
from deploycompress.config.schema import InputSpec, ModelConfig, Network, TargetConfig
from deploycompress.contracts import RunContext
from deploycompress.data.datasets.digits import Digits
from deploycompress.data.source import SourceData
from deploycompress.data.tasks.classification import Classification
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model import checkpoint
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.source import SourceModel
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.training import fit
from deploycompress.registry import load_reference
from deploycompress.stages.distill import Distill
from deploycompress.stages.prune import Prune

STUDENT = """
from torch import nn

class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, picture):  # not what model.inputs calls it: it goes by position
        return self.head(self.body(picture).mean((2, 3)))

def build(width=16):
    return Small(width)
"""


def run_context(rehearsal=False, others=(), labelled=True):
    config = ModelConfig(
        build="deploycompress.examples.resnet:build",
        args={"width": 8},
        inputs={"image": InputSpec(shape=("batch", 1, 8, 8))},
    )
    model = SourceModel(config, 0, others=others)
    data = SourceData(Digits.Config(source="digits", image_size=8, augment="none"), model, 0, few=rehearsal)
    return RunContext(
        model=model,
        data=data if labelled else Unlabelled(data),
        task=Classification(),
        target=TargetConfig(),
        gates={},
        store=None,
        seed=0,
        rehearsal=rehearsal,
        emit=lambda event: None,
        stopping=lambda: False,
    )


class Unlabelled:
    """The same samples; of those to learn from nobody knows the class."""

    def __init__(self, data):
        self.data = data

    def loader(self, split, epoch=None):
        batches = self.data.loader(split, epoch)
        return [replace(b, targets=None) for b in batches] if split == "train" else batches


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


def distilled(inputs, workdir, rehearsal=False, context=None, **config):
    workdir.mkdir()
    stage = Distill(Distill.Config(**config))
    return stage.run(inputs, workdir, context or run_context(rehearsal))


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
    with pytest.raises(ConfigError, match=r"unknown loss 'kdd'; known: kd, dkd"):
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


# ---------------------------------------------------------------- students of another build


@pytest.fixture
def small(tmp_path):
    """A network of another build, as the configuration names it."""
    (tmp_path / "small.py").write_text(STUDENT)
    return Network(build=f"{tmp_path / 'small.py'}:build", args={"width": 16})


def test_a_student_of_another_build_learns_and_goes_on_as_any_checkpoint(inputs, small, tmp_path):
    context, taught = run_context(others=[small]), {"source": inputs["teacher"], "teacher": inputs["teacher"]}
    outcome = distilled(taught, tmp_path / "work", context=context, student=small, epochs=2, lr=2e-2)
    assert outcome.metrics["val_accuracy"] > 0.5 > outcome.metrics["val_accuracy_before"]
    assert outcome.metrics["params"] == 16 * 9 + 16 * 16 * 9 + 4 * 16 + 170
    path = outcome.artifacts[0].path

    anew = run_context(others=[small])
    net = checkpoint.load(path, anew.model)
    assert type(net).__name__ == "Small"
    with pytest.raises(
        StageFailed, match=r"of another network, small.py:build-\w+; the configuration names no oth"
    ):
        checkpoint.load(path, run_context().model)

    (tmp_path / "pruned").mkdir()
    target = {"target": {"macs": "60%"}, "criterion": "magnitude", "compensate": False}
    prune = Prune(Prune.Config(**target))
    pruned = prune.run({"source": outcome.artifacts}, tmp_path / "pruned", anew)
    assert 0.4 < pruned.metrics["macs_ratio"] <= 0.6 and prune.ensures({}, pruned, anew)
    assert checkpoint.load(pruned.artifacts[0].path, anew.model).body[0].out_channels < 16


def test_a_student_of_another_build_is_a_compression_with_the_source_as_teacher(small):
    own = Distill(Distill.Config(student=small))
    assert own.compresses and own.inputs() == {"source": "last", "teacher": "last"}
    assert not Distill(Distill.Config()).compresses


# ---------------------------------------------------------------- teachers


def test_files_of_weights_and_steps_are_inputs_so_that_their_digests_are_in_the_key(tmp_path):
    weights = tmp_path / "teacher.safetensors"
    built = {"build": "timm:resnet18", "args": {"num_classes": 10}, "weights": weights}
    stage = Distill(Distill.Config(teacher=["original", built, "/x/big.onnx"], student=built))
    assert stage.inputs() == {
        "source": "last",
        "teacher.0": "original",
        "teacher.1": str(weights),
        "teacher.2": "/x/big.onnx",
        "student": str(weights),
    }
    depends = stage.depends(None)
    assert list(depends) == ["timm"] and depends["timm"][0].startswith("timm==")
    own = {"build": "/x/own.py:build"}
    assert Distill(Distill.Config(teacher=own)).depends(None) == Distill(Distill.Config()).depends(None) == {}


def test_several_teachers_a_step_a_file_of_weights_and_another_build(inputs, small, tmp_path):
    context = run_context(rehearsal=True, others=[small])
    net = checkpoint.load(inputs["teacher"][0].path, context.model)
    save_file(net.state_dict(), tmp_path / "own.safetensors")
    save_file(context.model.other(small).build().state_dict(), tmp_path / "small.safetensors")
    built = small.model_copy(update={"weights": tmp_path / "small.safetensors"})
    given = {
        "source": inputs["source"],
        "teacher.0": inputs["teacher"],
        "teacher.1": (Artifact.of("own", "checkpoint", tmp_path / "own.safetensors"),),
        "teacher.2": (Artifact.of("small", "checkpoint", built.weights),),
    }
    teachers = ["original", str(tmp_path / "own.safetensors"), built]
    outcome = distilled(given, tmp_path / "work", context=context, teacher=teachers, combine="confidence")
    assert outcome.artifacts


def test_teachers_are_combined_as_it_was_asked_for(inputs, small, tmp_path):
    context = run_context(others=[small])
    save_file(context.model.other(small).build().state_dict(), tmp_path / "small.safetensors")
    built = small.model_copy(update={"weights": tmp_path / "small.safetensors"})
    given = {
        "source": inputs["source"],
        "teacher.0": inputs["teacher"],
        "teacher.1": (Artifact.of("small", "checkpoint", built.weights),),
    }
    made = {
        combine: distilled(
            given, tmp_path / combine, context=context, epochs=1, teacher=["original", built], combine=combine
        )
        for combine in ("mean", "confidence")
    }
    assert made["mean"].artifacts[0].sha256 != made["confidence"].artifacts[0].sha256


def test_alpha_that_changes_on_the_way_ends_elsewhere(inputs, tmp_path):
    plain = distilled(inputs, tmp_path / "a", epochs=1, alpha=0.9)
    annealed = distilled(inputs, tmp_path / "b", epochs=1, alpha=0.9, anneal={"alpha": 0.1})
    assert plain.artifacts[0].sha256 != annealed.artifacts[0].sha256


def test_weights_of_a_teacher_that_do_not_fit_are_told_as_its_own(inputs, small, tmp_path):
    save_file({"body.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    built = small.model_copy(update={"weights": tmp_path / "other.safetensors"})
    context = run_context(rehearsal=True, others=[built])
    with pytest.raises(
        ConfigError, match=r"^distill.teacher.weights: .* Check distill.teacher.build and distill"
    ):
        distilled(inputs, tmp_path / "work", context=context, teacher=built)


def test_features_and_attention_of_a_pruned_student(inputs, tmp_path):
    """The ends of stages keep their width; inside the narrowed block an adapter is needed, and trained."""
    events = []
    context = replace(run_context(), emit=events.append)
    by_path = ["kd", "features", {"attention": {"weight": 100}}]
    outcome = distilled(inputs, tmp_path / "a", context=context, epochs=1, loss=by_path)
    assert outcome.metrics["val_accuracy"] > 0.3
    (told,) = [event.message for event in events if event.kind == "decision"]
    assert told.startswith("features are learned at ") and "layer1, layer2, layer3" in told
    inside = {"features": {"layers": {"layer3.0.conv1": "layer3.0.conv1"}}}
    assert distilled(inputs, tmp_path / "b", rehearsal=True, loss=["kd", inside]).artifacts
    with pytest.raises(ConfigError, match=r"the student has no layer 'layer9'"):
        wrong = {"features": {"layers": {"layer9": "layer3"}}}
        distilled(inputs, tmp_path / "c", rehearsal=True, loss=wrong)


def test_a_teacher_in_memory_and_on_disk_teaches_the_same(inputs, tmp_path):
    events = []
    context = replace(run_context(), emit=events.append)
    loss = ["kd", "features"]
    whole = distilled(inputs, tmp_path / "a", epochs=1, loss=loss)
    spread = distilled(
        inputs, tmp_path / "b", context=context, epochs=1, loss=loss, teacher_memory={"cpu": "70 KB"}
    )
    assert spread.artifacts[0].sha256 == whole.artifacts[0].sha256
    (told,) = [event.message for event in events if "spread" in event.message]
    assert "MB on cpu" in told and "MB on disk" in told
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["model"]
    with pytest.raises(ValueError, match=r"teacher_memory is for one process"):
        Distill.Config(teacher_memory="auto", launch={"processes": 2})


def test_teacher_and_student_are_trained_together(inputs, tmp_path):
    alone = distilled(inputs, tmp_path / "alone", epochs=1, alpha=0.5)
    together = distilled(inputs, tmp_path / "work", epochs=1, joint=True, alpha=0.5)
    # A teacher that learns answers differently from the second step on.
    assert together.artifacts[0].sha256 != alone.artifacts[0].sha256
    assert together.metrics["val_accuracy"] > 0.3


def test_unlabelled_samples_are_enough_for_the_teachers_answer_alone(inputs, tmp_path):
    context = run_context(labelled=False)
    outcome = distilled(inputs, tmp_path / "a", context=context, epochs=1, alpha=1.0)
    assert outcome.metrics["val_accuracy"] > outcome.metrics["val_accuracy_before"]
    with pytest.raises(ConfigError, match=r"distillation: received no labels; with alpha 0.9, below 1"):
        distilled(inputs, tmp_path / "b", context=context, epochs=1000)
