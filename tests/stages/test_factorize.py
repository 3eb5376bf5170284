"""The factorize stage: what it measures, what it keeps, and that a checkpoint holds it."""

import json

import pytest
import torch
from pydantic import ValidationError

from deploycompress.artifact import Artifact
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig, TaskConfig
from deploycompress.contracts import RunContext
from deploycompress.errors import ConfigError, Interrupted, StageFailed
from deploycompress.model import checkpoint
from deploycompress.registry import DATASETS
from deploycompress.stages.factorize import Factorize

WIDE = """
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                         nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
"""


@pytest.fixture
def wide(tmp_path):
    """(rehearsal) -> a context over three large linear layers, and its checkpoint."""
    from deploycompress.data.open import open_task
    from deploycompress.data.source import SourceData
    from deploycompress.model.source import SourceModel

    (tmp_path / "wide_model.py").write_text(WIDE)

    def make(rehearsal=False, stopping=False, **target):
        inputs = {"image": InputSpec(shape=("batch", 1, 8, 8))}
        model = SourceModel(ModelConfig(build=f"{tmp_path / 'wide_model.py'}:build", inputs=inputs), 0)
        config = DATASETS.load("digits").Config(source="digits", image_size=8, batch_size=50, augment="none")
        context = RunContext(
            model=model,
            data=SourceData(config, model, 0, few=rehearsal),
            task=open_task(TaskConfig()),
            target=TargetConfig(**({"batch_size": 8} | target)),
            gates={},
            store=None,
            seed=0,
            rehearsal=rehearsal,
            emit=lambda event: None,
            stopping=lambda: stopping,
        )
        checkpoint.save(model.build(), tmp_path / "source", model)
        return context, Artifact.of("train", "checkpoint", tmp_path / "source")

    return make


def factorize(context, source, workdir, **config):
    stage = Factorize(Factorize.Config.model_validate(config))
    workdir.mkdir()
    inputs = {"source": (source,)}
    outcome = stage.run(inputs, workdir, context)
    return outcome, stage.ensures(inputs, outcome, context)


def test_layers_that_measure_faster_become_two_and_others_stay(wide, tmp_path):
    context, source = wide()
    outcome, parity = factorize(context, source, tmp_path / "work", rank="10%", exclude=["1", "7"])
    rows = {row["layer"]: row for row in outcome.details["factorized"]}
    assert [*rows] == ["3", "5"]
    assert rows["3"]["factorized"] and rows["5"]["factorized"]  # a tenth of the work
    assert rows["3"]["rank"] == 48 and rows["3"]["break_even_rank"] == 512
    for row in rows.values():
        assert row["factorized"] == (row["low"] > 1.03) and row["low"] <= row["speedup"] <= row["high"]
    # Layers of the same sizes are measured once.
    assert {**rows["3"], "layer": ""} == {**rows["5"], "layer": ""}
    module = checkpoint.load(outcome.artifacts[0].path, context.model)
    assert module[3][0].out_features == 48 and parity["checkpoint_relative"] < 1e-5
    assert 0.1 < outcome.metrics["params_of_source"] < 0.2 and "val_accuracy" in outcome.metrics
    json.dumps(outcome.details, allow_nan=False)


def test_layers_that_are_not_faster_stay_dense_and_nothing_new_is_made(run_context, checkpoint_of, tmp_path):
    """A layer of 32 x 10 takes less time than it takes to start the second one."""
    context = run_context(threads=1)
    stage = Factorize(Factorize.Config.model_validate({"rank": "100%"}))
    stage._rank = lambda layer: 4
    (tmp_path / "work").mkdir()
    inputs = {"source": (checkpoint_of(context),)}
    outcome = stage.run(inputs, tmp_path / "work", context)
    assert outcome.artifacts == () and stage.ensures(inputs, outcome, context) == {}
    assert not any(row["factorized"] for row in outcome.details["factorized"])
    (note,) = [n for n in outcome.notes if n.subject == "5"]
    assert note.kind == "left_whole" and note.message.startswith(
        "stays dense: its two factors of rank 4 are "
    )
    assert not (tmp_path / "work" / "model").exists()


def test_a_rehearsal_measures_nothing_and_tries_every_layer(wide, tmp_path, monkeypatch):
    context, source = wide(rehearsal=True)
    monkeypatch.setattr("deploycompress.devices.jobs.measure", None)
    outcome, parity = factorize(context, source, tmp_path / "work", energy="90%")
    assert outcome.metrics["layers_factorized"] == len(outcome.details["factorized"]) >= 1
    assert parity["checkpoint_relative"] < 1e-5


def test_it_leaves_when_it_is_stopped(wide, tmp_path):
    context, source = wide(stopping=True)
    with pytest.raises(Interrupted):
        factorize(context, source, tmp_path / "work")


def test_the_key_knows_the_device_and_the_runtime(wide):
    context, _ = wide()
    stage = Factorize(Factorize.Config())
    facts = stage.depends(context)["place"]
    assert stage.reads() == {"target"}
    assert facts["device"]["cpu"] and facts["versions"]["onnxruntime"]
    json.dumps(facts)
    stage.requires(context)


def test_a_runtime_that_opens_no_onnx_is_refused(wide):
    context, _ = wide(runtime="tensorrt")
    with pytest.raises(
        ConfigError, match=r"target\.runtime tensorrt opens engine; choose a runtime that opens"
    ):
        Factorize(Factorize.Config()).requires(context)


def test_a_saved_model_that_is_another_is_an_error(wide, tmp_path):
    context, source = wide(rehearsal=True)
    outcome, _ = factorize(context, source, tmp_path / "work")
    module = checkpoint.load(outcome.artifacts[0].path, context.model)
    with torch.no_grad():
        module[7][1].bias.add_(1)
    checkpoint.save(module, outcome.artifacts[0].path, context.model)
    with pytest.raises(StageFailed, match="the factorised model that was saved differs"):
        Factorize(Factorize.Config()).ensures({"source": (source,)}, outcome, context)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": "50%", "energy": "90%"}, "give one of them"),
        ({"rank": "0%"}, "must be more than 0"),
        ({"energy": "101%"}, "must be at most 100%"),
        ({"rank": 64}, "must be at most 1"),
    ],
)
def test_mistakes_in_the_configuration(config, message):
    with pytest.raises(ValidationError) as caught:
        Factorize.Config.model_validate(config)
    assert message in str(caught.value)
