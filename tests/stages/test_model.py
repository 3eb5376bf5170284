"""The first step: what it keeps, and every way in which model, weights and data may not fit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError
from deploycompress.model import checkpoint
from deploycompress.stages.model import InitialModel


def start(context, workdir, weights=None):
    workdir.mkdir(exist_ok=True)
    stage = InitialModel(InitialModel.Config(weights=weights))
    stage.requires(context)
    return stage.run({}, workdir, context)


class Data:
    """Gives the same batch for every split."""

    digest = "fixed"

    def __init__(self, *batches):
        self.batches = batches

    def loader(self, split, epoch=None):
        return list(self.batches)


def batch(shape=(4, 1, 8, 8), labels=(0, 1, 2, 9)):
    return Batch({"image": torch.ones(shape)}, torch.tensor(labels), len(labels))


def test_the_untrained_model_is_kept_with_its_digests_and_size(run_context, tmp_path):
    events = []
    context = run_context(events=events)
    outcome = start(context, tmp_path / "work")
    # 8 filters of 3x3 at 4x4 positions, and ten outputs of 32 inputs
    assert outcome.details["macs"] == 8 * 9 * 16 + 320
    assert outcome.details["params"] == 72 + 16 + 330
    assert outcome.details["digests"] == {"model": context.model.digest, "data": context.data.digest}
    assert outcome.artifacts[0].path == tmp_path / "work" / "model"
    loaded = checkpoint.load(outcome.artifacts[0].path, context.model)
    assert torch.equal(loaded[0].weight, context.model.build()[0].weight)
    assert events[-1].figures == {"params": 418.0, "macs": 1472.0}


def test_weights_are_loaded(run_context, tmp_path):
    events = []
    context = run_context(events=events)
    module = context.model.build()
    with torch.no_grad():
        module[5].bias.fill_(7)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    outcome = start(context, tmp_path / "work", tmp_path / "w.safetensors")
    assert bool((checkpoint.load(outcome.artifacts[0].path, context.model)[5].bias == 7).all())
    assert events[0].message == "weights from w.safetensors: read as it is"


def test_missing_weights_are_found_before_anything_runs(run_context, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.weights: .*none\.pt does not exist"):
        InitialModel(InitialModel.Config(weights=tmp_path / "none.pt")).requires(run_context())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(), "the train split is empty; look at data.source"),
        (
            Data(batch(shape=(4, 3, 8, 8))),
            r"its forward fails on the first train batch: RuntimeError: .*Received image \[4, 3, 8, 8\]; "
            r"model.inputs declares image \[batch, 1, 8, 8\]",
        ),
        (Data(batch(labels=(0, 1, 2, 10))), "labels from 0 to 10; expected 0 to 9"),
        (Data(Batch({"image": torch.full((4, 1, 8, 8), float("nan"))}, torch.tensor([0] * 4), 4)), "output output has NaN"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit(run_context, tmp_path, data, message):
    context = replace(run_context(), data=data)
    with pytest.raises(ConfigError, match=message):
        start(context, tmp_path / "work")
    assert not (tmp_path / "work" / "model").exists()


def test_samples_to_learn_from_need_no_labels_but_those_to_judge_by_do(run_context, tmp_path):
    """A distillation may follow its teacher alone; a stage that does need labels says so itself."""

    class Unlabelled(Data):
        def loader(self, split, epoch=None):
            kept = super().loader(split, epoch)
            return [replace(b, targets=None) for b in kept] if split == self.unlabelled else kept

    data = Unlabelled(batch())
    data.unlabelled = "train"
    assert start(replace(run_context(), data=data), tmp_path / "work").artifacts
    data.unlabelled = "val"
    with pytest.raises(ConfigError, match="received no labels"):
        start(replace(run_context(), data=data), tmp_path / "again")


def test_nan_in_the_weights_names_the_tensor(run_context, tmp_path):
    context = run_context()
    state = context.model.build().state_dict()
    state["5.bias"][3] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"tensor 5\.bias has 1 NaN or infinite values of 10"):
        start(context, tmp_path / "work", tmp_path / "w.pt")


def test_given_weights_are_evaluated_once_and_held_against_what_is_expected(
    run_context, tmp_path, monkeypatch
):
    from deploycompress.config.quantities import Quantity
    from deploycompress.recovery import given

    context = run_context()
    save_file(context.model.build().state_dict(), tmp_path / "w.safetensors")
    reached = start(context, tmp_path / "first", tmp_path / "w.safetensors").metrics["val_accuracy"]
    assert 0 <= reached < 0.5
    monkeypatch.setattr(given, "evaluate", None)  # what is known already is not computed again
    again = start(context, tmp_path / "again", tmp_path / "w.safetensors")
    assert again.metrics["val_accuracy"] == reached
    monkeypatch.undo()
    expected = {"accuracy": Quantity.parse("93.4%", "percent")}
    stage = InitialModel(InitialModel.Config(weights=tmp_path / "w.safetensors", expect=expected))
    with pytest.raises(
        ConfigError, match=r"model\.expect: the given weights reach accuracy .* expected 93\.40 %"
    ):
        stage.run({}, tmp_path / "again", context)
    rehearsal = run_context(rehearsal=True)
    stage.run({}, tmp_path / "again", rehearsal)  # a few samples prove nothing


def test_a_validation_split_that_does_not_define_the_metric_is_found_before_an_epoch(run_context, tmp_path):
    from deploycompress.data.tasks.ranking import Ranking
    from deploycompress.model.source import SourceModel

    class OneLogit(SourceModel):
        def call(self, module, inputs):
            return {"logit": super().call(module, inputs)["output"][:, 0]}

    context = run_context()
    context.model.__class__ = OneLogit
    ones = Batch({"image": torch.rand(4, 1, 8, 8)}, torch.ones(4), 4)
    context = replace(context, task=Ranking(), data=Data(ones))
    with pytest.raises(ConfigError, match="metric auc is not defined on the val split: received log_loss"):
        start(context, tmp_path / "work")
    start(replace(context, rehearsal=True), tmp_path / "work")
