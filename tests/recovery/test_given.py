"""The given weights are held against what is expected of them."""

from __future__ import annotations

import pytest

from deploycompress.config.quantities import Quantity
from deploycompress.data.tasks.classification import Classification
from deploycompress.data.tasks.regression import Regression
from deploycompress.errors import ConfigError
from deploycompress.recovery.given import Reached, held_against


def level(text: str) -> Quantity:
    return Quantity.parse(text, "percent", "points", "number")


def notes(found: Reached, expected: str, tolerance: str | None = None, **metric: str):
    task = Classification()
    limit = None if tolerance is None else level(tolerance)
    return list(held_against(found, {metric.get("name", "accuracy"): level(expected)}, limit, task))


def test_worse_than_expected_is_an_error_with_received_expected_and_tolerance():
    with pytest.raises(
        ConfigError,
        match=r"reach accuracy 88.00 % on the validation split; expected 93.40 % within 1.00 pp and 0.98 pp of "
        r"sampling error: the data, their transform or the order of the classes are not what",
    ):
        notes(Reached({"accuracy": 0.88}, 0.005), "93.4%")
    with pytest.raises(ConfigError, match=r"expected 90.00 % within 0.50 pp: the data"):
        notes(Reached({"accuracy": 0.89}, None), "90%", "0.5 pp")


def test_within_the_tolerance_and_what_so_few_samples_tell_it_is_right():
    assert notes(Reached({"accuracy": 0.925}, None), "93.4%") == []
    assert notes(Reached({"accuracy": 0.90}, 0.02), "93.4%") == []
    with pytest.raises(ConfigError):
        notes(Reached({"accuracy": 0.90}, 0.01), "93.4%")


def test_the_sampling_error_is_that_of_the_primary_metric_alone():
    with pytest.raises(ConfigError, match=r"reach f1 90\.00 %"):
        notes(Reached({"accuracy": 0.9, "f1": 0.9}, 0.02), "93.4%", name="f1")


def test_much_better_than_expected_is_noted():
    (note,) = notes(Reached({"accuracy": 0.999}, 0.001), "93.4%")
    assert note.kind == "warning" and "may hold samples that they were trained on" in note.message


def test_lower_is_better_for_an_error_and_its_tolerance_is_a_part_of_it():
    expected = {"rmse": level("2.0")}
    assert list(held_against(Reached({"rmse": 2.09}, None), expected, None, Regression())) == []
    with pytest.raises(ConfigError, match=r"reach rmse 2.2 on the validation split; expected 2 within 0.1: "):
        list(held_against(Reached({"rmse": 2.2}, None), expected, None, Regression()))


def test_a_metric_that_the_split_does_not_give():
    with pytest.raises(
        ConfigError, match="the given weights have no top5 on the validation split; received accuracy"
    ):
        notes(Reached({"accuracy": 0.9}, None), "99%", name="top5")
