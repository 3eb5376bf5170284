"""Figures of known differences, and what cannot be compared."""

import numpy as np
import pytest
import torch

from deploycompress.errors import StageFailed
from deploycompress.model.parity import Parity, compare, constant_outputs, to_numpy, worst


def test_figures_of_a_known_difference():
    reference = np.array([[1.0, 2.0], [-4.0, 0.0]])
    candidate = np.array([[1.0, 2.5], [0.5, 0.0]])
    found = compare({"y": reference}, {"y": candidate})
    assert found.max_abs == 4.5
    assert found.relative == pytest.approx(4.5 / 4)
    assert found.top1_agreement == 0.5
    cosine = (reference * candidate).sum() / np.linalg.norm(reference) / np.linalg.norm(candidate)
    assert found.cosine == pytest.approx(cosine)


def test_the_worst_output_counts():
    a = np.ones((2, 3))
    found = compare({"x": a, "y": a}, {"x": a, "y": a * 1.5})
    assert (found.max_abs, found.relative) == (0.5, 0.5)
    assert worst([found, Parity(0.1, 0.9, -1.0, None)]) == Parity(0.5, 0.9, -1.0, 1.0)


def test_tiny_outputs_are_compared_too():
    a = np.array([[1e-200, 2e-200, 3e-200]])
    assert compare({"y": a}, {"y": a}).cosine == pytest.approx(1.0)
    assert compare({"y": a}, {"y": -a}).cosine == pytest.approx(-1.0)


def test_an_agreement_needs_classes():
    assert compare({"y": np.ones((2, 1))}, {"y": np.ones((2, 1))}).top1_agreement is None
    assert compare({"y": np.ones((2, 3, 4))}, {"y": np.ones((2, 3, 4))}).top1_agreement is None


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({"z": np.ones((1, 2))}, "other names: z; expected y"),
        ({"y": np.ones((1, 3))}, r"shape \[1, 3\]; expected \[1, 2\]"),
        ({"y": np.array([[np.nan, np.inf]])}, "candidate's output y has 2 NaN or infinite values of 2"),
    ],
)
def test_what_cannot_be_compared(candidate, message):
    with pytest.raises(StageFailed, match=message):
        compare({"y": np.ones((1, 2))}, candidate)


def test_outputs_that_do_not_depend_on_the_input():
    varying = np.array([[1e-22, 0.0], [2e-22, 0.0]])
    assert constant_outputs({"varying": varying, "same": np.ones((2, 3))}) == ["same"]
    assert constant_outputs({"zero": np.zeros((2, 3)), "one": np.ones((1, 3))}) == ["zero", "one"]
    assert constant_outputs({"noise": np.ones((2, 1)) + np.array([[0.0], [1e-9]])}) == ["noise"]


def test_half_precision_becomes_arrays():
    assert to_numpy({"y": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)})["y"].dtype == np.float32
