"""Metric names in gates and in what is expected of the weights, held against the task."""

from __future__ import annotations

import pytest

WEIGHTS = ("weights: null", "weights: w.pt\n  expect: {accuracy: 93.4%}")
REGRESSION = (
    ("task: classification", "task: regression"),
    ("accuracy: {max_drop: 1 pp,", "accuracy: {max_rise: 0.1,"),
)


@pytest.fixture(autouse=True)
def weights(folder):
    (folder / "w.pt").write_bytes(b"")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((("latency_p50:", "metric:precison: {min: 80%}\n  latency_p50:"),), "gates.metric:precison: unknown metric of classification 'precison'; did you mean 'precision'?"),
        ((("latency_p50:", "metric:accuracy_blur: {max_drop: 2 pp}\n  latency_p50:"),), "name that in the benchmark's corruptions: [blur]"),
        ((*REGRESSION, ("latency_p50:", "worst_class: {min: 80%}\n  latency_p50:")), "gates.worst_class: regression has no classes to guard; its metrics are mae, rmse, r2"),
        ((*REGRESSION, ("max_rise", "max_drop")), "gates.accuracy.max_drop: mae is better the lower it is, so that it gets worse by a rise; write max_rise"),
        ((("max_drop", "max_rise"),), "gates.accuracy.max_rise: accuracy is better the higher it is, so that it gets worse by a drop; write max_drop"),
        ((("latency_p50:", "metric:recall.3: {max_rise: 2 pp}\n  latency_p50:"),), "gates.metric:recall.3.max_rise: recall is better the higher"),
        ((("max_drop: 1 pp", "max_drop: 1 pp, max_rise: 1 pp"),), "a metric gets worse by a drop or by a rise; expected max_drop or max_rise"),
        ((("task: classification", "task: {name: segmentation, args: {metric: f1}}"),), "task.args: segmentation: metric 'f1' is not defined for segmentation; expected one of miou"),
        ((("weights: null", "expect: {accuracy: 93.4%}"),), "model.expect: no weights are given to expect this of"),
        ((("weights: null", "tolerance: 1 pp"),), "model.tolerance: there is no model.expect that it is a tolerance of"),
        ((WEIGHTS, ("93.4%", "93.4")), "model.expect.accuracy: received 93.4: a plain number is a share from 0 to 1 here; write 93.4%"),
        ((WEIGHTS, ("{accuracy: 93", "{accurcy: 93")), "model.expect.accurcy: unknown metric of classification 'accurcy'; did you mean 'accuracy'?"),
        ((WEIGHTS, ("93.4%", "good")), "model.expect.accuracy: received 'good'"),
    ],
)  # fmt: skip
def test_a_metric_that_the_task_does_not_have(refused, good, changes, message) -> None:
    lines = refused(good, *changes)
    assert any(message in line for line in lines), lines


@pytest.mark.parametrize(
    "changes",
    [
        (WEIGHTS,),
        (("latency_p50:", "metric:f1: {min: 80%}\n  latency_p50:"),),
        (("latency_p50:", "metric:recall.3: {max_drop: 2 pp}\n  latency_p50:"),),
        (
            ("mode: quick", "mode: quick, corruptions: [blur]"),
            ("latency_p50:", "metric:accuracy_blur: {max_drop: 2 pp}\n  latency_p50:"),
        ),
        REGRESSION,
        (*REGRESSION, ("weights: null", "weights: w.pt\n  expect: {rmse: 3.5}\n  tolerance: 0.1")),
    ],
)
def test_a_metric_that_it_has(reading, good, changes) -> None:
    reading(good, *changes)
