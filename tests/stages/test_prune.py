"""The prune stage on the tiny digits network."""

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from deploycompress.artifact import Artifact, damaged
from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model import checkpoint
from deploycompress.pruning.apply import apply
from deploycompress.recovery import repair
from deploycompress.stages.factorize import Factorize
from deploycompress.stages.prune import Prune
from deploycompress.stages.sparsify import Sparsify


def prune(context, source, workdir, **config):
    """The stage's outcome and what it ensures; alignment 2, since the network is 8 channels wide."""
    stage = Prune(Prune.Config.model_validate({"align": 2, **config}))
    workdir.mkdir(exist_ok=True)
    inputs = {"source": (source,)}
    outcome = stage.run(inputs, workdir, context)
    return outcome, stage.ensures(inputs, outcome, context)


@pytest.mark.parametrize(
    ("config", "name", "low", "high"),
    [
        ({"target": {"macs": "50%"}}, "macs_ratio", 0.4, 0.5),
        ({"target": {"macs": "50%"}, "allocation": "uniform", "criterion": "random"}, "macs_ratio", 0.4, 0.5),
        ({"target": {"params": "60%"}, "criterion": {"magnitude": {"norm": "l1"}}}, "params_ratio", 0.4, 0.6),
        ({"target": {"ratio": 0.5}, "criterion": "magnitude"}, "params_ratio", 0.4, 0.6),
        ({"target": {"size": "1 KB"}}, "params_ratio", 0.2, 0.6),
    ],
)
def test_a_target_is_met_and_the_pruned_model_equals_the_masked_one(
    run_context, checkpoint_of, tmp_path, config, name, low, high
):
    events = []
    context = run_context(events=events)
    source = checkpoint_of(context)
    outcome, figures = prune(context, source, tmp_path / "work", **config)
    assert low <= outcome.metrics[name] <= high
    assert set(outcome.metrics) >= {"macs", "macs_ratio", "params", "params_ratio", "val_accuracy"}
    # Kernels round otherwise where loaded weights lie otherwise in memory: 4e-8 has been seen.
    assert outcome.metrics["masked_relative"] < 1e-5 and figures["checkpoint_relative"] < 1e-6
    assert outcome.metrics["val_loss_repaired"] <= outcome.metrics["val_loss_pruned"]
    assert damaged(source) is None
    artifact = outcome.artifacts[0]
    module = checkpoint.load(artifact.path, context.model)
    row, _ = outcome.details["widths"]
    assert row == {"layer": "0", "before": 8, "after": module[0].out_channels} and row["after"] % 2 == 0
    assert outcome.details["unpruned"] == [{"layer": "5", "reason": "its channels are the model's outputs"}]
    assert outcome.notes[0].message == "its channels are the model's outputs"
    assert any(e.message == "pruned" and e.figures["macs_ratio"] <= 1 for e in events)
    json.dumps(outcome.details, allow_nan=False)


def test_losses_are_tried_where_widths_compete_by_them(run_context, checkpoint_of, tmp_path):
    """And nothing is, for a target that the whole network meets or none can."""
    events = []
    context = run_context(events=events)
    source, wish = checkpoint_of(context), {"allocation": "latency"}
    outcome, _ = prune(context, source, tmp_path / "one", target={"macs": "50%"}, **wish)
    assert outcome.metrics["macs_ratio"] <= 0.5
    tried = [e for e in events if e.message.startswith(("trying what", "trial "))]
    assert tried[0].message == "trying what each of 1 groups and blocks costs the loss" and len(tried) > 1
    again, _ = prune(context, source, tmp_path / "two", target={"macs": "50%"}, **wish)
    assert again.artifacts[0].sha256 == outcome.artifacts[0].sha256
    events.clear()
    whole, _ = prune(context, source, tmp_path / "three", target={"macs": "100%"}, **wish)
    assert whole.metrics["macs_ratio"] == 1.0
    nothing, _ = prune(context, source, tmp_path / "four", target={"macs": "100%"}, exclude=["*"], **wish)
    assert nothing.metrics["macs_ratio"] == 1.0
    with pytest.raises(StageFailed, match="the target cannot be reached: the smallest is macs"):
        prune(context, source, tmp_path / "five", target={"macs": "1%"}, **wish)
    assert not [e for e in events if e.message.startswith(("trying what", "trial "))]


def test_a_limit_that_can_be_counted_is_out_of_reach_before_anything_is_measured(
    run_context, checkpoint_of, tmp_path
):
    """A rehearsal finds it too, before the training is paid for; and tells two small shares apart."""
    for number, rehearsal in enumerate((False, True)):
        context = run_context(rehearsal=rehearsal)
        wish = {"target": {"latency": "60%", "size": "2 B"}}
        with pytest.raises(StageFailed, match=r"the smallest is size \d+\.\d% \(target 0\.\d\d\d%\)"):
            prune(context, checkpoint_of(context), tmp_path / f"work{number}", **wish)


def test_a_loss_that_is_not_finite_is_no_figure(run_context, checkpoint_of, tmp_path, monkeypatch):
    """A network that least squares or new statistics cured is kept, and its manifest is JSON."""
    made = repair.repair
    monkeypatch.setattr(repair, "repair", lambda *given: replace(made(*given), losses=(float("inf"), 1.0)))
    context = run_context()
    outcome, _ = prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "50%"})
    assert "val_loss_pruned" not in outcome.metrics and outcome.metrics["val_loss_repaired"] == 1.0


def test_an_alignment_wider_than_every_group(run_context, checkpoint_of, tmp_path):
    context = run_context()
    message = r"with 1 groups at their smallest \(1 of which have no width but their own at this alignment\)"
    with pytest.raises(StageFailed, match=message):
        prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "50%"}, align=64)


def test_a_pattern_that_names_no_layer(run_context, checkpoint_of, tmp_path):
    context = run_context()
    source = {"source": (checkpoint_of(context),)}
    message = r"received 'conv\*', which no layer is called; the network has 0, 1, 2, 3, 4, 5"
    config = {"exclude": ("0", "conv*")}
    for number, stage in enumerate(
        (
            Prune(Prune.Config.model_validate({"target": {"macs": "50%"}, **config})),
            Sparsify(Sparsify.Config.model_validate({"sparsity": "50%", **config})),
            Factorize(Factorize.Config.model_validate(config)),
        )
    ):
        folder = tmp_path / f"work{number}"
        folder.mkdir()
        with pytest.raises(ConfigError, match=message):
            stage.run(source, folder, context)


def test_shares_are_of_the_unpruned_model_the_second_time_too(run_context, checkpoint_of, tmp_path):
    context = run_context()
    first, _ = prune(context, checkpoint_of(context), tmp_path / "one", target={"macs": "80%"})
    second, figures = prune(context, first.artifacts[0], tmp_path / "two", target={"macs": "50%"})
    assert 0.5 < first.metrics["macs_ratio"] <= 0.8
    assert 0.4 < second.metrics["macs_ratio"] <= 0.5
    assert second.metrics["masked_relative"] < 1e-5 and figures["checkpoint_relative"] < 1e-6
    assert second.details["widths"][0]["before"] == first.details["widths"][0]["after"]


def test_a_model_that_meets_its_target_goes_through(run_context, checkpoint_of, tmp_path):
    context = run_context()
    outcome, figures = prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "100%"})
    assert outcome.metrics["macs_ratio"] == 1
    assert "nothing was pruned: the model meets its target as it is" in [n.message for n in outcome.notes]
    assert figures == {"checkpoint_relative": 0} and outcome.metrics["masked_relative"] == 0


def test_auto_alignment_is_eight(run_context, checkpoint_of, tmp_path):
    context = run_context()
    with pytest.raises(StageFailed, match=r"smallest is macs 100\.0% \(target 50\.0%\), with 1 groups"):
        prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "50%"}, align="auto")


def test_an_unreachable_target_as_far_as_it_goes(run_context, checkpoint_of, tmp_path):
    context = run_context()
    target = {"macs": "1%"}
    outcome, _ = prune(
        context, checkpoint_of(context), tmp_path / "work", target=target, on_unreachable="best"
    )
    assert outcome.details["reached"] is False
    assert any(
        "the target is not reached: the least that can be had is macs" in n.message for n in outcome.notes
    )


def test_excluded_layers_stay(run_context, checkpoint_of, tmp_path):
    context = run_context()
    with pytest.raises(StageFailed, match=r"2 layers left whole \(0: excluded by the configuration \(0\)"):
        prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "50%"}, exclude=["0"])


def test_a_rehearsal_reads_few_batches(run_context, checkpoint_of, tmp_path):
    context = run_context(rehearsal=True)
    outcome, _ = prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "50%"})
    assert outcome.metrics["macs_ratio"] <= 0.5


def test_data_without_labels_will_do(run_context, checkpoint_of, tmp_path):
    context = run_context()

    class Unlabelled:
        digest = "unlabelled"

        def loader(self, split, epoch=None):
            loader = context.data.loader(split, epoch)
            return [Batch(b.inputs, None, b.size) for b in loader] if split == "calibration" else loader

    outcome, _ = prune(
        replace(context, data=Unlabelled()),
        checkpoint_of(context),
        tmp_path / "work",
        target={"macs": "50%"},
    )
    assert outcome.metrics["macs_ratio"] <= 0.5


def test_a_pruned_model_that_is_not_the_masked_one_is_an_error(
    run_context, checkpoint_of, tmp_path, monkeypatch
):
    def spoiled(module, *plan):
        apply(module, *plan)
        with torch.no_grad():
            module[5].bias.add_(1)

    monkeypatch.setattr("deploycompress.pruning.apply.apply", spoiled)
    context = run_context()
    with pytest.raises(StageFailed, match="differs from the unpruned model with the same channels masked by"):
        prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "50%"})


def test_a_checkpoint_that_gives_something_else_is_an_error(run_context, checkpoint_of, tmp_path):
    context = run_context()
    source = checkpoint_of(context)
    stage = Prune(Prune.Config.model_validate({"align": 2, "target": {"macs": "50%"}}))
    inputs = {"source": (source,)}
    workdir = tmp_path / "work"
    workdir.mkdir()
    outcome = stage.run(inputs, workdir, context)
    module = checkpoint.load(outcome.artifacts[0].path, context.model)
    with torch.no_grad():
        module[5].bias.add_(1)
    checkpoint.save(module, outcome.artifacts[0].path, context.model)
    with pytest.raises(StageFailed, match="the checkpoint, loaded again, differs from the pruned model"):
        stage.ensures(inputs, outcome, context)


def test_a_source_that_is_damaged(run_context, checkpoint_of, tmp_path):
    context = run_context()
    source = checkpoint_of(context)
    (source.path / "architecture.json").write_text("{}")
    with pytest.raises(StageFailed, match=r"architecture\.json is not an architecture"):
        prune(context, source, tmp_path / "work", target={"macs": "50%"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "target\n  Field required"),
        ({"target": {}}, "expected at least one of latency, macs, params, size, ratio"),
        ({"target": {"macs": "0%"}}, "must be more than 0"),
        ({"target": {"macs": "120%"}}, "must be at most 100%"),
        ({"target": {"macs": 0.5}}, "for a share write 50%"),
        ({"target": {"flops": "50%"}}, "Extra inputs are not permitted"),
        ({"target": {"macs": "50%"}, "criterion": {"taylor": {"x": 1}}}, "unknown option of taylor 'x'; it takes none"),
        ({"target": {"macs": "50%"}, "criterion": {"magnitude": {"norm": "l3"}}}, "norm is l1 or l2, received 'l3'"),
        ({"target": {"macs": "50%"}, "criterion": {"magnitude": {"nrm": "l2"}}}, "unknown option of magnitude 'nrm'; did you mean 'norm'?"),
        ({"target": {"macs": "50%"}, "criterion": {"taylor": {}, "random": {}}}, "expected one criterion"),
        ({"target": {"macs": "50%"}, "align": 0}, "greater than or equal to 1"),
        ({"target": {"macs": "50%"}, "align": "some"}, "Input should be 'auto'"),
        ({"target": {"macs": "50%"}, "batches": 0}, "greater than or equal to 1"),
        ({"target": {"macs": "50%"}, "on_unreachable": "warn"}, "Input should be 'fail' or 'best'"),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration(config, message):
    with pytest.raises(ValidationError) as caught:
        Prune.Config.model_validate(config)
    assert message in str(caught.value)


def test_a_criterion_of_ones_own_that_cannot_be_made(run_context, checkpoint_of, tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    comparable = needs_data = True\n    def __init__(self, x): ...\n"
    )
    context = run_context()
    with pytest.raises(ConfigError, match=r"prune\.criterion .*mine\.py:Mine could not be made: .*'x'"):
        prune(
            context,
            checkpoint_of(context),
            tmp_path / "work",
            target={"macs": "50%"},
            criterion=f"{tmp_path / 'mine.py'}:Mine",
        )


def test_artefacts_hold_no_pickles(run_context, checkpoint_of, tmp_path):
    context = run_context()
    outcome, _ = prune(context, checkpoint_of(context), tmp_path / "work", target={"macs": "50%"})
    artifact: Artifact = outcome.artifacts[0]
    assert [f.name for f in artifact.files] == ["architecture.json", "model.safetensors"]
