"""The train stage: from a checkpoint to a better one, in a folder of its own."""

from __future__ import annotations

import math

import pytest
import torch

from deploycompress.artifact import Artifact, damaged
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.contracts import RunContext
from deploycompress.data.datasets.digits import Digits
from deploycompress.data.source import SourceData
from deploycompress.data.tasks.classification import Classification
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model import checkpoint
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.source import SourceModel
from deploycompress.stages.train import Train


@pytest.fixture
def run():
    """``run(...)`` -> the context of a run on 8x8 digits with a network of 5,000 parameters."""

    def make(rehearsal=False, task=None, events=None):
        config = ModelConfig(
            build="deploycompress.examples.resnet:build",
            args={"width": 4},
            inputs={"image": InputSpec(shape=("batch", 1, 8, 8))},
        )
        model = SourceModel(config, 0)
        data = SourceData(
            Digits.Config(source="digits", image_size=8, augment="none"), model, 0, few=rehearsal
        )
        return RunContext(
            model=model,
            data=data,
            task=task or Classification(),
            target=TargetConfig(),
            gates={},
            store=None,
            seed=0,
            rehearsal=rehearsal,
            emit=(events if events is not None else []).append,
            stopping=lambda: False,
        )

    return make


@pytest.fixture
def fresh(run, tmp_path):
    """The untrained network, as the first step leaves it."""
    context = run()
    checkpoint.save(context.model.build(), tmp_path / "fresh", context.model)
    return {"source": (Artifact.of("model", "checkpoint", tmp_path / "fresh"),)}


def trained(context, inputs, workdir, **config):
    workdir.mkdir()
    return Train(Train.Config(**config)).run(inputs, workdir, context)


def test_it_learns_and_keeps_the_last_epoch(run, fresh, tmp_path):
    events = []
    outcome = trained(run(events=events), fresh, tmp_path / "work", epochs=4, lr=1e-2)
    assert outcome.metrics["val_accuracy"] > 0.8
    expected = {"accuracy", "top5", "precision", "recall", "f1", "worst_class"}
    assert set(outcome.metrics) == {f"val_{name}" for name in expected}
    assert [e["epoch"] for e in outcome.details["epochs"]] == [1, 2, 3, 4] and len(events) == 4
    assert outcome.details["epochs"][-1]["val_accuracy"] == outcome.metrics["val_accuracy"]
    (artifact,) = outcome.artifacts
    assert artifact.kind == "checkpoint" and artifact.path == tmp_path / "work" / "model"
    assert {f.name for f in artifact.files} == {"model.safetensors", "architecture.json"}
    assert not damaged(fresh["source"][0]), "the source is never edited"


def test_the_same_seed_makes_the_same_file(run, fresh, tmp_path):
    first, again = (trained(run(), fresh, tmp_path / name, epochs=1).artifacts[0].sha256 for name in "ab")
    assert first == again


def test_label_smoothing_is_in_the_loss_and_not_in_the_metrics(run, fresh, tmp_path):
    plain = trained(run(), fresh, tmp_path / "a", epochs=3, lr=1e-2)
    smooth = trained(run(), fresh, tmp_path / "b", epochs=3, lr=1e-2, label_smoothing=0.5)
    assert smooth.details["epochs"][-1]["loss"] > plain.details["epochs"][-1]["loss"] + 0.5
    assert smooth.metrics["val_accuracy"] > 0.6


def test_label_smoothing_of_a_task_without_labels_is_refused(run, fresh, tmp_path):
    class Regression:
        pass

    with pytest.raises(
        ConfigError, match=r"train.label_smoothing is 0.1, but the task Regression does not know it"
    ):
        trained(run(task=Regression()), fresh, tmp_path / "work", label_smoothing=0.1)


def test_a_rehearsal_trains_nothing_and_leaves_a_checkpoint(run, fresh, tmp_path):
    outcome = trained(run(rehearsal=True), fresh, tmp_path / "work", epochs=1000)
    assert outcome.details["epochs"] == []
    before = run().model.build().state_dict()
    after = checkpoint.load(outcome.artifacts[0].path, run().model).state_dict()
    assert all(
        torch.equal(before[k], after[k]) for k in before if "running" not in k and "num_batches" not in k
    )


def test_divergence_fails_and_leaves_nothing(run, fresh, tmp_path):
    with pytest.raises(StageFailed, match=r"epoch \d+, batch \d+ of 16, lr .*is not finite"):
        trained(run(), fresh, tmp_path / "work", epochs=2, lr=1e30, optimizer="sgd", warmup=0)
    assert list((tmp_path / "work").iterdir()) == []


def test_its_figures_are_numbers_for_json(run, fresh, tmp_path):
    outcome = trained(run(), fresh, tmp_path / "work", epochs=1)
    figures = [*outcome.metrics.values(), *(v for epoch in outcome.details["epochs"] for v in epoch.values())]
    assert all(type(v) is float and math.isfinite(v) for v in figures)


def test_batch_statistics_are_those_of_the_averaged_weights(run, fresh, tmp_path):
    context = run()
    outcome = trained(context, fresh, tmp_path / "work", epochs=1, ema=0.9)
    net = checkpoint.load(outcome.artifacts[0].path, context.model)
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    reestimate_batchnorm(net, (b.inputs for b in context.data.loader("train")), context.model.call)
    assert all(torch.allclose(kept[name], buffer, atol=1e-5) for name, buffer in net.named_buffers())


def test_statistics_that_are_not_trained_stay_as_they_are(run, fresh, tmp_path):
    """Those of a block are trained, in training mode, and estimated anew after the average; the others are not."""
    context = run()
    outcome = trained(
        context, fresh, tmp_path / "work", epochs=1, ema=0.9, trainable=["layer3.*", "linear.*"]
    )
    before, after = (
        checkpoint.load(a.path, context.model) for a in (fresh["source"][0], outcome.artifacts[0])
    )
    own = dict(after.named_buffers())
    moved = {name for name, buffer in before.named_buffers() if not torch.equal(buffer, own[name])}
    assert moved and all(name.startswith("layer3.") for name in moved)
