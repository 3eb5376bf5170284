"""Distillation: one forward of the teacher a batch, on the same view, without a trace in it."""

from __future__ import annotations

import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.recovery.losses.kd import SoftLabels
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
    fit(
        student,
        Distillation(run.model, run.task, teacher, SoftLabels(alpha=1.0)),
        Recipe(epochs=30, lr=0.02),
        run,
    )
    assert before < 0.8 and agreement() > 0.9


def test_a_loss_may_keep_the_teachers_outputs_for_its_backward(network, context):
    """Autograd refuses inference tensors; a product keeps both of its operands."""
    run, student = context(), network()

    def unlike(student, teacher, batch):
        return -(student.main * teacher.main).mean()

    objective = Distillation(run.model, run.task, network(), unlike)
    terms = objective(student, run.data.loader("train", epoch=0)[0])
    terms["loss"].backward()
    assert student[0].weight.grad is not None


def test_without_labels_the_task_is_not_asked(network, context):
    run = context()
    objective = Distillation(run.model, run.task, network(), SoftLabels(alpha=1.0))
    assert set(objective(network(), Batch({"x": run.data.x}, None, 96))) == {"kd"}
