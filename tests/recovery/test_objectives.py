"""Distillation: one forward of the teacher a batch, on the same view, without a trace in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.features import Features
from deploycompress.recovery.losses.kd import SoftLabels
from deploycompress.recovery.losses.mse import SquaredDistance
from deploycompress.recovery.losses.weighted import Weighted, WeightedSum
from deploycompress.recovery.mutual import MutualLearning
from deploycompress.recovery.objectives import Distillation
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.training import fit


class Watched(nn.Module):
    """A teacher that notes what it was given, and how."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x):
        self.seen.append((x, self.training, torch.is_inference_mode_enabled()))
        return self.net(x)


def first_batch(run):
    return run.data.loader("train", epoch=0)[0]


def test_the_teacher_sees_each_batch_once_in_inference_mode_and_stays_as_it_is(network, context):
    run, teacher = context(), Watched(network())
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    views = []
    student = network(width=4)
    student.register_forward_pre_hook(
        lambda module, inputs: views.append(inputs[0]) if module.training else None
    )
    fit(student, Distillation(run.model, run.task, teacher, SoftLabels()), Recipe(epochs=2), run)
    assert len(teacher.seen) == 12 and all(
        not training and inference for _, training, inference in teacher.seen
    )
    assert all(torch.equal(x, y) for (x, *_), y in zip(teacher.seen, views, strict=True))
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_student_comes_to_agree_with_its_teacher(network, context):
    run, teacher, student = context(), network(), network(width=32)
    x = run.data.x

    def agreement():
        student.eval()
        return float((student(x).argmax(1) == teacher.eval()(x).argmax(1)).float().mean())

    before = agreement()
    objective = Distillation(run.model, run.task, teacher, SoftLabels(), alpha=1.0)
    fit(student, objective, Recipe(epochs=30, lr=0.02), run)
    assert before < 0.8 and agreement() > 0.9


def test_a_loss_may_keep_the_teachers_outputs_for_its_backward(network, context):
    """Autograd refuses inference tensors; a product keeps both of its operands."""
    run, student = context(), network()

    def unlike(student, teacher, batch):
        return -(student.main * teacher.main).mean()

    objective = Distillation(run.model, run.task, network(), unlike)
    terms = objective(student, first_batch(run))
    terms["loss"].backward()
    assert student[0].weight.grad is not None


def test_alpha_is_the_teachers_share_and_the_tasks_own_loss_has_the_rest(network, context):
    run, student, teacher = context(), network(width=8, norm=False), network()
    batch = first_batch(run)

    def terms(alpha):
        return Distillation(run.model, run.task, teacher, SquaredDistance(), alpha)(student, batch)

    logits = run.model.call(student, batch.inputs)["output"]
    squared = (logits - run.model.call(teacher.eval(), batch.inputs)["output"]).square().mean()
    labels = nn.functional.cross_entropy(logits, batch.targets)
    found = terms(0.3)
    assert torch.allclose(found["loss"], 0.3 * squared) and torch.allclose(found["task"], 0.7 * labels)
    assert set(terms(1.0)) == {"loss"} and set(terms(0.0)) == {"task"}


def test_without_labels_the_task_is_not_asked(network, context):
    run = context()
    unlabelled = Batch({"x": run.data.x}, None, 96)
    alone = Distillation(run.model, run.task, network(), SoftLabels(), alpha=1.0)
    alone.prepare(network(), unlabelled)
    assert set(alone(network(), unlabelled)) == {"loss"}
    for alpha, final in ((0.9, None), (1.0, 0.5)):
        objective = Distillation(run.model, run.task, network(), SoftLabels(), alpha, final)
        with pytest.raises(ConfigError, match=r"received no labels; with alpha 0.\d, below 1, it needs them"):
            objective.prepare(network(), unlabelled)


def test_alpha_goes_from_the_teacher_to_the_labels(network, context):
    run, student = context(), network(norm=False)
    objective = Distillation(run.model, run.task, network(width=4), SoftLabels(), 0.8, final_alpha=0.2)
    batch, shares = first_batch(run), []
    for done in (0.0, 0.5, 1.0):
        objective.progress(done)
        shares.append(float(objective(student, batch)["loss"].detach()))
    assert shares[1] == pytest.approx(shares[0] * 5 / 8) and shares[2] == pytest.approx(shares[0] / 4)


def test_features_reach_the_loss_and_adapters_are_trained(network, context):
    """Pairs by path: 0 and 1 before, 2 after the activation; the last of one size is 3, the dropout."""
    run, student, teacher = context(), network(width=4), network()
    objective = Distillation(run.model, run.task, teacher, Features(), alpha=1.0)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    batch = first_batch(run)
    objective.prepare(student, batch)
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert [tuple(p.shape) for p in objective.trainable.parameters()] == [(16, 4), (16,)]
    terms = objective(student.train(), batch)
    terms["loss"].backward()
    assert all(float(p.grad.abs().max()) > 0 for p in objective.trainable.parameters())
    assert float(student[0].weight.grad.abs().max()) > 0 and student[4].weight.grad is None
    assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())


def test_a_first_batch_that_does_not_fit_is_refused(network, context):
    run, batch = context(), first_batch(context())
    other_classes = nn.Linear(8, 5)
    with pytest.raises(ConfigError, match=r"the student's output is \[16, 3\] and the teacher's \[16, 5\]"):
        Distillation(run.model, run.task, other_classes, SoftLabels()).prepare(network(), batch)
    with pytest.raises(
        ConfigError,
        match=r"the teacher's forward fails on the first batch: RuntimeError: .*Received x \[16, 8\]",
    ):
        Distillation(run.model, run.task, nn.Linear(9, 3), SoftLabels()).prepare(network(), batch)
    with pytest.raises(ConfigError, match=r"the student has no layer 'layer1'"):
        Distillation(run.model, run.task, network(), Features({"layer1": "0"})).prepare(network(), batch)


def test_in_mutual_learning_both_learn_from_the_labels_and_from_each_other(network, context):
    run, student, teacher = context(), network(width=4), network()
    loss = WeightedSum({"kd": Weighted(SoftLabels(), 1.0)})
    objective = MutualLearning(run.model, run.task, teacher, loss, alpha=0.5)
    batch = first_batch(run)
    objective.prepare(student.eval(), batch)
    assert objective.trainable is teacher and not student.training
    terms = objective(student.train(), batch)
    assert set(terms) == {"kd", "task", "teacher_kd", "teacher_task"} and teacher.training
    (terms["kd"] + terms["task"]).backward(retain_graph=True)
    assert student[0].weight.grad is not None and teacher[0].weight.grad is None
    student.zero_grad()
    (terms["teacher_kd"] + terms["teacher_task"]).backward()
    assert teacher[0].weight.grad is not None and student[0].weight.grad is None
    with pytest.raises(ConfigError, match=r"distill.joint: the loss reads features"):
        MutualLearning(run.model, run.task, teacher, Features(), 0.5)
