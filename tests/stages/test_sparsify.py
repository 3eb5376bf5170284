"""The sparsify stage on the tiny digits network, and the zeros in what comes after it."""

import json

import pytest
import torch
from pydantic import ValidationError

from deploycompress.errors import StageFailed
from deploycompress.model import checkpoint
from deploycompress.stages.distill import Distill
from deploycompress.stages.prune import Prune
from deploycompress.stages.sparsify import Sparsify


def done(stage, inputs, workdir, context):
    workdir.mkdir()
    outcome = stage.run(inputs, workdir, context)
    return outcome, stage.ensures(inputs, outcome, context)


def sparsify(context, source, workdir, **config):
    return done(Sparsify(Sparsify.Config.model_validate(config)), {"source": (source,)}, workdir, context)


def zeros(context, artifact):
    module = checkpoint.load(artifact.path, context.model)
    return {name: module.get_parameter(name) == 0 for name in ("0.weight", "5.weight")}


def test_the_share_of_zeros_is_reached_and_the_checkpoint_holds_them(run_context, checkpoint_of, tmp_path):
    context = run_context()
    outcome, parity = sparsify(context, checkpoint_of(context), tmp_path / "work", sparsity="75%")
    gone = zeros(context, outcome.artifacts[0])
    count = sum(int(z.sum()) for z in gone.values())
    assert count == round(0.75 * (72 + 320)) and outcome.metrics["sparsity"] == count / 392
    assert outcome.metrics["sparsity_of_all_parameters"] > 0.6 and "val_accuracy" in outcome.metrics
    rows = {row["layer"]: row for row in outcome.details["sparsity"]}
    assert rows["0"] == {"layer": "0", "weights": 72, "sparsity": int(gone["0.weight"].sum()) / 72}
    assert parity == {"checkpoint_relative": 0}
    assert "a runtime has to skip zeros" in outcome.notes[0].message
    json.dumps(outcome.details, allow_nan=False)


def test_within_every_layer(run_context, checkpoint_of, tmp_path):
    context = run_context()
    source = checkpoint_of(context)
    outcome, _ = sparsify(context, source, tmp_path / "work", sparsity=0.5, scope="layer")
    assert [z.float().mean() for z in zeros(context, outcome.artifacts[0]).values()] == [0.5, 0.5]


def test_two_of_four(run_context, checkpoint_of, tmp_path):
    context = run_context()
    outcome, _ = sparsify(context, checkpoint_of(context), tmp_path / "work", pattern="2:4")
    gone = zeros(context, outcome.artifacts[0])
    assert not gone["0.weight"].any() and (gone["5.weight"].reshape(-1, 4).sum(1) == 2).all()
    assert [(n.kind, n.message, n.subject) for n in outcome.notes[1:]] == [
        ("left_whole", "its input dimension is 1, not a multiple of 4", "0")
    ]


def test_a_layer_that_is_emptied_is_told(run_context, checkpoint_of, tmp_path):
    context = run_context()
    outcome, _ = sparsify(
        context, checkpoint_of(context), tmp_path / "work", sparsity="99%", scope="layer", exclude=["5"]
    )
    assert all(n.kind != "warning" for n in outcome.notes)
    assert any(n.subject == "5" and "excluded" in n.message for n in outcome.notes)
    outcome, _ = sparsify(
        context, outcome.artifacts[0], tmp_path / "all", sparsity="99.9%", scope="layer", exclude=["5"]
    )
    assert ("warning", "0") in [(n.kind, n.subject) for n in outcome.notes]


def test_distill_keeps_every_zero_and_trains_the_rest(run_context, checkpoint_of, tmp_path):
    """Also with weight decay and momentum, after a second round, and after channels went."""
    context = run_context()
    source = checkpoint_of(context)
    first, _ = sparsify(context, source, tmp_path / "one", sparsity="60%")
    stage = Distill(Distill.Config(epochs=2, lr=0.05, optimizer="sgd"))
    inputs = {"source": first.artifacts, "teacher": (source,)}
    taught, _ = done(stage, inputs, tmp_path / "two", context)
    before, after = zeros(context, first.artifacts[0]), zeros(context, taught.artifacts[0])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert taught.metrics["sparsity"] == first.metrics["sparsity"]
    assert taught.artifacts[0].sha256 != first.artifacts[0].sha256

    second, _ = sparsify(context, taught.artifacts[0], tmp_path / "three", sparsity="80%")
    assert second.metrics["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert all(zeros(context, second.artifacts[0])[name][z].all() for name, z in after.items())

    pruning = Prune(Prune.Config.model_validate({"align": 2, "target": {"macs": "60%"}}))
    pruned, _ = done(pruning, {"source": second.artifacts}, tmp_path / "four", context)
    inputs = {"source": pruned.artifacts, "teacher": (source,)}
    last, _ = done(Distill(Distill.Config(epochs=1, lr=0.05)), inputs, tmp_path / "five", context)
    before, after = zeros(context, pruned.artifacts[0]), zeros(context, last.artifacts[0])
    assert before["5.weight"].any() and all(torch.equal(before[name], after[name]) for name in before)


def test_without_sparsify_nothing_is_kept_zero(run_context, checkpoint_of, tmp_path):
    context = run_context()
    source = checkpoint_of(context)
    module = checkpoint.load(source.path, context.model)
    with torch.no_grad():
        module[5].weight.zero_()
    checkpoint.save(module, source.path, context.model)
    stage = Distill(Distill.Config(epochs=1, lr=0.05))
    inputs = {"source": (source,), "teacher": (source,)}
    outcome, _ = done(stage, inputs, tmp_path / "work", context)
    assert "sparsity" not in outcome.metrics
    assert not zeros(context, outcome.artifacts[0])["5.weight"].all()


def test_a_saved_model_without_the_zeros_is_an_error(run_context, checkpoint_of, tmp_path):
    context = run_context()
    source = checkpoint_of(context)
    outcome, _ = sparsify(context, source, tmp_path / "work", sparsity="50%")
    module = checkpoint.load(outcome.artifacts[0].path, context.model)
    with torch.no_grad():
        module[5].weight.add_(1)
    checkpoint.save(module, outcome.artifacts[0].path, context.model)
    stage = Sparsify(Sparsify.Config.model_validate({"sparsity": "50%"}))
    with pytest.raises(StageFailed, match=r"5\.weight has weights that should be zero"):
        stage.ensures({"source": (source,)}, outcome, context)


def test_a_checkpoint_that_names_a_weight_that_is_not_there(run_context, checkpoint_of, tmp_path):
    context = run_context()
    outcome, _ = sparsify(context, checkpoint_of(context), tmp_path / "work", sparsity="50%")
    path = outcome.artifacts[0].path / "architecture.json"
    path.write_text(
        path.read_text().replace('"5.weight"\n', '"6.weight"\n').replace('"5.weight"]', '"6.weight"]')
    )
    with pytest.raises(StageFailed, match=r"says that 6\.weight is sparse; the model has no such parameter"):
        checkpoint.load(outcome.artifacts[0].path, context.model)


def test_nothing_to_sparsify_is_an_error(run_context, checkpoint_of, tmp_path):
    context = run_context()
    with pytest.raises(
        StageFailed, match="no weight can become zero: 0: excluded by the configuration; 5: excl"
    ):
        sparsify(context, checkpoint_of(context), tmp_path / "work", sparsity="50%", exclude=["*"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected a sparsity, the share of the weights that become zero: 80%"),
        ({"sparsity": "100%"}, "leaves no weight"),
        ({"sparsity": "0%"}, "must be more than 0"),
        ({"sparsity": "120%"}, "must be at most 100%"),
        ({"pattern": "2:4", "sparsity": "50%"}, "2:4 is 50% in every layer by itself"),
        ({"pattern": "1:4"}, "Input should be 'unstructured' or '2:4'"),
        ({"sparsity": "50%", "scope": "block"}, "Input should be 'global' or 'layer'"),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration(config, message):
    with pytest.raises(ValidationError) as caught:
        Sparsify.Config.model_validate(config)
    assert message in str(caught.value)
