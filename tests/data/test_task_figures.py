"""What the tasks count, against torchmetrics and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deploycompress.contracts import Batch, Outputs
from deploycompress.data.tasks.autoencoder import Autoencoder
from deploycompress.data.tasks.ctc import Ctc, decode, edits
from deploycompress.data.tasks.multi_label import MultiLabel
from deploycompress.data.tasks.ranking import Ranking
from deploycompress.data.tasks.regression import Regression
from deploycompress.data.tasks.segmentation import Segmentation
from deploycompress.data.tasks.token_classification import TokenClassification


def measured(task, output, targets, step=30, inputs=None):
    """The metrics of one output tensor, or of several by name, counted in batches."""
    outputs = output if isinstance(output, dict) else {"output": output}
    metrics = task.metrics()
    for i in range(0, len(next(iter(outputs.values()))), step):
        cut = {name: t[i : i + step] for name, t in outputs.items()}
        given = {name: t[i : i + step] for name, t in (inputs or {}).items()}
        some = None if targets is None else targets[i : i + step]
        metrics.update(Outputs(cut), Batch(given, some, len(next(iter(cut.values())))))
    return metrics


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_segmentation_is_torchmetrics_jaccard_index():
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    logits, labels = torch.randn(40, 4, 5, 6), torch.randint(4, (40, 5, 6))
    labels[:, 0] = 255
    metrics = measured(Segmentation(), logits, labels)
    each = multiclass_jaccard_index(logits, labels, 4, average="none", ignore_index=255)
    assert list(metrics.by_class()["iou"].values()) == pytest.approx(each.tolist())
    found = metrics.compute()
    assert found["miou"] == pytest.approx(float(each.mean()))
    assert found["worst_class"] == pytest.approx(float(each.min()))
    right = multiclass_accuracy(logits, labels, 4, average="micro", ignore_index=255)
    assert found["pixel_accuracy"] == pytest.approx(float(right))
    assert metrics.scores() is None


def test_segmentation_reads_small_logits_an_auxiliary_output_and_only_what_counts():
    task = Segmentation(auxiliary_weight=0.25)
    labels = torch.tensor([[[0, 0], [1, 255]]])
    small = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)
    outputs, batch = Outputs({"out": small, "aux": -small}), Batch({}, labels, 1)
    task.check(outputs, batch)
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    main, auxiliary = (2 * right + wrong) / 3, (2 * wrong + right) / 3
    assert float(task.loss(outputs, batch)) == pytest.approx(main + 0.25 * auxiliary)
    nothing = Batch({}, torch.full((1, 2, 2), 255), 1)
    assert float(task.loss(outputs, nothing)) == 0
    metrics = task.metrics()
    metrics.update(outputs, nothing)
    assert metrics.compute() == {}
    metrics.update(outputs, batch)
    assert metrics.compute() == pytest.approx({"miou": 1 / 3, "pixel_accuracy": 2 / 3, "worst_class": 0})


def test_multi_label_is_torchmetrics_and_exact_match_has_scores():
    from torchmetrics.functional.classification import (
        multilabel_exact_match,
        multilabel_f1_score,
        multilabel_precision,
        multilabel_recall,
    )

    targets = torch.randint(2, (80, 5))
    logits = torch.randn(80, 5) + 2 * targets
    metrics = measured(MultiLabel(metric="exact_match"), logits, targets)
    found, shares = metrics.compute(), logits.sigmoid()
    wanted = {
        "f1": multilabel_f1_score,
        "precision": multilabel_precision,
        "recall": multilabel_recall,
        "exact_match": multilabel_exact_match,
    }
    for name, function in wanted.items():
        assert found[name] == pytest.approx(float(function(shares, targets, 5))), name
    each = multilabel_f1_score(shares, targets, 5, average="none")
    assert found["worst_class"] == pytest.approx(float(each.min()))
    assert metrics.scores().mean() == pytest.approx(found["exact_match"])
    assert measured(MultiLabel(), logits, targets).scores() is None


def test_regression_is_torchmetrics_also_far_from_zero():
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

    true = torch.randn(90, 3, dtype=torch.float64) + 1e6
    answer = true + 0.3 * torch.randn(90, 3)
    metrics = measured(Regression(), answer, true)
    found = metrics.compute()
    assert found["mae"] == pytest.approx(float(mean_absolute_error(answer, true)))
    assert found["rmse"] == pytest.approx(float(mean_squared_error(answer, true)) ** 0.5)
    assert found["r2"] == pytest.approx(float(r2_score(answer - 1e6, true - 1e6)), rel=1e-6)
    assert metrics.scores().mean() == pytest.approx(found["mae"])
    assert measured(Regression(metric="rmse"), answer, true).scores() is None


def test_r2_of_targets_that_do_not_vary_is_not_given():
    assert set(measured(Regression(), torch.randn(9, 1), torch.ones(9)).compute()) == {"mae", "rmse"}


def test_ranking_is_torchmetrics_auc_with_ties():
    from torchmetrics.functional.classification import binary_auroc

    true = torch.randint(2, (200,))
    logits = (torch.randn(200) + true).round(decimals=0)
    metrics = measured(Ranking(metric="log_loss"), logits[:, None], true)
    found = metrics.compute()
    assert found["auc"] == pytest.approx(float(binary_auroc(logits.sigmoid().double(), true)))
    assert found["log_loss"] == pytest.approx(
        float(torch.nn.functional.binary_cross_entropy_with_logits(logits, true.float()))
    )
    assert metrics.scores().mean() == pytest.approx(found["log_loss"])
    assert set(measured(Ranking(), logits, torch.ones(200)).compute()) == {"log_loss"}


def test_token_classification_leaves_out_what_is_ignored_or_masked():
    from torchmetrics.functional.classification import multiclass_f1_score

    logits, labels = torch.randn(50, 6, 4), torch.randint(4, (50, 6))
    labels[:, 0] = -100
    mask = torch.ones(50, 6, dtype=torch.int64)
    mask[:, 5] = 0
    metrics = measured(TokenClassification(mask="m"), logits, labels, inputs={"m": mask})
    kept = multiclass_f1_score(logits[:, 1:5].reshape(-1, 4), labels[:, 1:5].reshape(-1), 4, average="none")
    assert metrics.compute()["f1"] == pytest.approx(float(kept.mean()))
    batch = Batch({"m": mask}, labels, 50)
    loss = TokenClassification(mask="m").loss(Outputs({"output": logits}), batch)
    wanted = torch.nn.functional.cross_entropy(logits[:, 1:5].reshape(-1, 4), labels[:, 1:5].reshape(-1))
    assert float(loss) == pytest.approx(float(wanted))


def test_ctc_is_torchmetrics_word_and_character_error_rate():
    from torchmetrics.functional.text import char_error_rate, word_error_rate

    task = Ctc(symbols="-abc ")
    texts = [torch.randint(1, 5, (n,)) for n in (0, 3, 7, 12, 9)]
    logits = torch.randn(5, 20, 5)
    metrics = measured(task, logits, texts, step=2)
    spelt = lambda symbols: "".join(task.symbols[int(s)] for s in symbols)  # noqa: E731
    found = [spelt(decode(row, 0)) for row in logits.argmax(2).numpy()]
    true = [spelt(text) for text in texts]
    assert metrics.compute()["cer"] == pytest.approx(float(char_error_rate(found, true)))
    assert metrics.compute()["wer"] == pytest.approx(float(word_error_rate(found, true)))
    assert task.primary.name == "wer" and Ctc().primary.name == "cer" and not task.primary.higher_is_better


def test_greedy_decoding_and_edits_by_hand():
    assert decode(np.array([0, 1, 1, 0, 1, 2, 2, 0]), 0) == [1, 1, 2] and decode(np.array([]), 0) == []
    for a, b, wanted in (
        ("kitten", "sitting", 3),
        ("", "ab", 2),
        ("ab", "", 2),
        ("abc", "abc", 0),
        ("ab", "ba", 2),
    ):
        assert edits(a, b) == edits(b, a) == wanted


def test_ctc_loss_counts_only_the_frames_of_each_sample_and_padded_labels_are_lists():
    logits, lengths = torch.randn(2, 9, 4), torch.tensor([9, 5])
    task = Ctc(lengths="frames")
    outputs = Outputs({"output": logits, "frames": lengths})
    listed = Batch({}, [torch.tensor([1, 2, 3]), torch.tensor([2])], 2)
    padded = Batch({}, torch.tensor([[1, 2, 3], [2, -100, -100]]), 2)
    task.check(outputs, padded)
    loss = task.loss(outputs, listed)
    assert float(loss) == pytest.approx(float(task.loss(outputs, padded)))
    changed = logits.clone()
    changed[1, 5:] = 7
    assert float(task.loss(Outputs({"output": changed, "frames": lengths}), padded)) == pytest.approx(
        float(loss)
    )
    assert float(Ctc().loss(outputs, padded)) != pytest.approx(float(loss))


def test_autoencoder_by_hand():
    task = Autoencoder(beta=2.0, metric="negative_elbo")
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    outputs = {
        "reconstruction": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "mean": torch.tensor([[1.0], [0.0]]),
        "log_variance": torch.tensor([[0.0], [math.log(4)]]),
    }
    metrics = measured(task, outputs, None, inputs={"x": x})
    kl = np.array([0.5, 0.5 * (4 - 1 - math.log(4))]) / 2
    each = np.array([2.0, 0.5]) + 2 * kl
    found = metrics.compute()
    assert found == pytest.approx({"reconstruction": 1.25, "kl": kl.mean(), "negative_elbo": each.mean()})
    assert metrics.scores() == pytest.approx(each)
    batch = Batch({"x": x}, None, 2)
    assert float(task.loss(Outputs(outputs), batch)) == pytest.approx(each.mean())
    plain = measured(Autoencoder(), outputs["reconstruction"], None, inputs={"x": x}).compute()
    assert plain == pytest.approx({"reconstruction": 1.25, "negative_elbo": 1.25})


def test_an_autoencoder_whose_output_or_divergence_does_not_fit():
    from deploycompress.errors import ConfigError

    batch = Batch({"x": torch.full((2, 3), 2.0)}, None, 2)
    for task, outputs, message in (
        (
            Autoencoder(),
            {"code": torch.zeros(2, 1)},
            r"output is float32\[2, 1\] for the input float32\[2, 3\]",
        ),
        (
            Autoencoder(minimise="bce"),
            {"r": torch.zeros(2, 3)},
            "the input has values from 2 to 2; expected 0 to 1",
        ),
        (
            Autoencoder(),
            {"r": torch.zeros(2, 3), "mean": torch.zeros(2, 1)},
            "expected both 'mean' and 'log_var",
        ),
        (Autoencoder(output="x"), {"r": torch.zeros(2, 3)}, "the model has no output 'x'; received r"),
        (Autoencoder(input="z"), {"r": torch.zeros(2, 3)}, "the model has no input 'z'; received x"),
    ):
        with pytest.raises(ConfigError, match=message):
            task.check(Outputs(outputs), batch)


def test_several_tasks_add_their_losses_by_weight_and_take_targets_as_a_dict_of_tensors():
    from deploycompress.data.tasks.multi_task import MultiTask

    heads = {
        "a": {"task": "regression", "weight": 0.5},
        "b": {"task": "regression", "args": {"minimise": "mae"}},
    }
    task = MultiTask(heads)
    outputs = Outputs({"a": torch.tensor([[2.0]]), "b": torch.tensor([[3.0]])})
    batch = Batch({}, {"a": torch.tensor([0.0]), "b": torch.tensor([1.0])}, 1)
    task.check(outputs, batch)
    assert float(task.loss(outputs, batch)) == pytest.approx(0.5 * 4 + 2)
    assert task.primary.name == "a.mae"
