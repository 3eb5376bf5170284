"""Soft labels: the equation against values computed by hand, and what the loss asks for."""

from __future__ import annotations

import math

import pytest
import torch

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.kd import SoftLabels


def outputs(*rows, **options):
    return Outputs({"output": torch.tensor(rows, **options)})


LABEL_0 = Batch({}, torch.tensor([0]), 1)


def test_the_equation_by_hand():
    """At T = 2, teacher logits (2 ln 3, 0) are probabilities (3/4, 1/4) and student logits (0, 0) (1/2, 1/2)."""
    student, teacher = outputs([0.0, 0.0]), outputs([2 * math.log(3), 0.0])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(SoftLabels(2.0)(student, teacher, LABEL_0)) == pytest.approx(4 * divergence)
    assert float(SoftLabels(2.0)(student, teacher, LABEL_0)) == pytest.approx(4 * 0.1308120, rel=1e-5)


def test_it_is_a_mean_over_the_batch_and_over_positions():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    loss = SoftLabels()
    single = [
        loss(Outputs({"o": s[None]}), Outputs({"o": t[None]}), LABEL_0)
        for s, t in zip(student, teacher, strict=True)
    ]
    whole = loss(Outputs({"o": student}), Outputs({"o": teacher}), LABEL_0)
    assert float(whole) == pytest.approx(float(sum(single)) / 4, rel=1e-5)
    tokens = loss(Outputs({"o": student.T[None]}), Outputs({"o": teacher.T[None]}), LABEL_0)
    assert float(tokens) == pytest.approx(float(whole), rel=1e-5)


def test_a_student_that_is_its_teacher_has_no_soft_loss_and_no_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = SoftLabels()(Outputs({"o": logits}), Outputs({"o": logits.detach()}), LABEL_0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6) and float(logits.grad.abs().max()) < 1e-6


def test_the_gradient_hardly_depends_on_a_high_temperature():
    """What T^2 is for: for large T the gradient is (s - t) / classes, whatever T is."""
    teacher, gradients = torch.tensor([[1.0, 0.0, -1.0]]), []
    for temperature in (50.0, 100.0):
        student = torch.zeros(1, 3, requires_grad=True)
        SoftLabels(temperature)(Outputs({"o": student}), Outputs({"o": teacher}), LABEL_0).backward()
        gradients.append(student.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=3e-3)
    assert torch.allclose(gradients[1], -teacher / 3, atol=3e-3)


def test_tokens_with_their_classes_last_are_sent_to_the_loss_for_tokens():
    tokens = Outputs({"o": torch.zeros(2, 7, 3)})
    with pytest.raises(
        ConfigError, match=r"outputs are \[2, 7, 3\] and the labels \[2, 7\]; .* use loss: token_kd"
    ):
        SoftLabels()(tokens, tokens, Batch({}, torch.zeros(2, 7, dtype=torch.int64), 2))
    assert float(SoftLabels()(tokens, tokens, Batch({}, torch.zeros(2, 3, dtype=torch.int64), 2))) == 0


def test_a_teacher_for_other_classes_and_a_temperature_of_zero_are_refused():
    with pytest.raises(ConfigError, match=r"the student's output is \[1, 2\] and the teacher's \[1, 3\]"):
        SoftLabels()(outputs([0.0, 1.0]), outputs([0.0, 1.0, 2.0]), LABEL_0)
    with pytest.raises(ValueError, match="temperature is 0; expected a number above 0"):
        SoftLabels(0)
