"""The classification task against a hand count and torchmetrics, and the labels that it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deploycompress.config.schema import TaskConfig
from deploycompress.contracts import Batch, Outputs
from deploycompress.data.open import open_task
from deploycompress.data.tasks.classification import Classification
from deploycompress.errors import ConfigError


def batch_of(labels):
    labels = torch.as_tensor(labels)
    return Batch({}, labels, len(labels))


def counted(logits, labels, step=100):
    metrics = Classification().metrics()
    for i in range(0, len(labels), step):
        metrics.update(Outputs({"output": logits[i : i + step]}), batch_of(labels[i : i + step]))
    return metrics


def test_figures_counted_by_hand():
    logits = torch.tensor([[2.0, 1, 0], [0, 2, 1], [0, 2, 1], [1, 0, 2]])
    metrics = counted(logits, torch.tensor([0, 1, 2, 2]), step=3)
    by_class = {
        "recall": {"0": 1.0, "1": 1.0, "2": 0.5},
        "precision": {"0": 1.0, "1": 0.5, "2": 1.0},
        "f1": {"0": 1.0, "1": pytest.approx(2 / 3), "2": pytest.approx(2 / 3)},
    }
    assert metrics.by_class() == by_class
    macro = {"precision": 2.5 / 3, "recall": 2.5 / 3, "f1": (1 + 2 / 3 + 2 / 3) / 3}
    assert metrics.compute() == pytest.approx({"accuracy": 0.75, "worst_class": 0.5, **macro})
    assert metrics.scores().tolist() == [1, 1, 0, 1]


def test_figures_are_those_of_torchmetrics():
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 12, generator=generator), torch.randint(12, (500,), generator=generator)
    logits[torch.arange(500), labels] += 1.5
    metrics = counted(logits, labels)
    figures, recall = metrics.compute(), multiclass_recall(logits, labels, 12, average="none")
    assert figures["accuracy"] == pytest.approx(
        float(multiclass_accuracy(logits, labels, 12, average="micro"))
    )
    top5 = multiclass_accuracy(logits, labels, 12, average="micro", top_k=5)
    assert figures["top5"] == pytest.approx(float(top5))
    assert figures["worst_class"] == pytest.approx(float(recall.min()))
    for name, function in {"precision": multiclass_precision, "f1": multiclass_f1_score}.items():
        each = function(logits, labels, 12, average="none")
        assert figures[name] == pytest.approx(float(function(logits, labels, 12, average="macro")))
        assert list(metrics.by_class()[name].values()) == pytest.approx(each.tolist())
    assert list(metrics.by_class()["recall"].values()) == pytest.approx(recall.tolist())
    assert metrics.scores().mean() == pytest.approx(figures["accuracy"])


def test_a_tie_counts_as_the_class_that_argmax_takes():
    assert counted(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).compute()["accuracy"] == 0.5


def test_a_class_without_samples_is_not_the_worst():
    metrics = counted(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert metrics.by_class()["recall"] == {"0": 1.0, "1": 1.0}
    assert metrics.compute()["worst_class"] == 1


def test_loss_is_cross_entropy_and_label_smoothing_mixes_in_the_uniform_one():
    outputs, batch = Outputs({"output": torch.tensor([[math.log(3.0), 0.0]])}), batch_of([0])
    assert float(Classification().loss(outputs, batch)) == pytest.approx(-math.log(0.75))
    smoothed = -0.8 * math.log(0.75) - 0.2 * (math.log(0.75) + math.log(0.25)) / 2
    assert float(Classification(label_smoothing=0.2).loss(outputs, batch)) == pytest.approx(smoothed)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "received labels from 0 to 3; expected 0 to 2, as the model has 3 outputs"),
        (torch.tensor([-1, 0]), "received labels from -1 to 0; expected 0 to 2"),
        (torch.tensor([0.0, 1.0]), r"received labels float32\[2\]; expected integers \[2\]"),
        (torch.tensor([True, False]), r"received labels bool\[2\]"),
        (torch.tensor([[0], [1]]), r"received labels int64\[2, 1\]; expected integers \[2\]"),
        (["cat", "dog"], "received labels of type list; expected an integer tensor"),
        (None, r"received no labels; .* let the data source yield \(inputs, labels\)"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ConfigError, match=message):
        Classification().check(Outputs({"output": torch.zeros(2, 3)}), Batch({}, labels, 2))


def test_labels_of_any_integer_type_fit():
    for dtype in (torch.uint8, torch.int32, torch.int64):
        Classification().check(
            Outputs({"output": torch.zeros(2, 3)}), batch_of(torch.tensor([0, 2], dtype=dtype))
        )


def test_outputs_that_do_not_fit():
    with pytest.raises(
        ConfigError, match=r"first output is \[2, 3, 4, 4\] for a batch of 2; expected \[2, classes\]"
    ):
        Classification().check(Outputs({"output": torch.zeros(2, 3, 4, 4)}), batch_of([0, 1]))
    with pytest.raises(ConfigError, match=r"the model has 3 outputs; expected 10, as task.args says"):
        Classification(classes=10).check(Outputs({"output": torch.zeros(2, 3)}), batch_of([0, 1]))


def test_a_task_is_opened_by_name_and_refuses_what_it_does_not_take():
    task = open_task(TaskConfig(args={"classes": 7}))
    assert task == Classification(classes=7)
    assert (task.primary.name, task.primary.higher_is_better, task.primary.unit) == (
        "accuracy",
        True,
        "share",
    )
    with pytest.raises(
        ConfigError, match=r"unexpected keyword argument 'klasses'; its arguments are: metric, output, cl"
    ):
        open_task(TaskConfig(args={"klasses": 7}))
    with pytest.raises(ConfigError, match=r"label_smoothing is 1.5; expected 0 or more, and less than 1"):
        open_task(TaskConfig(args={"label_smoothing": 1.5}))
    with pytest.raises(ConfigError, match=r"unknown task 'regress'; known: classification"):
        open_task(TaskConfig(name="regress"))


def test_scores_are_numbers_for_json():
    assert counted(torch.eye(2), torch.tensor([0, 1])).scores().dtype == np.float64
