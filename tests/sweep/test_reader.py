"""sweep.yaml: every mistake before the first trial, with file, line, column and what to do."""

from __future__ import annotations

import itertools

import pytest

from deploycompress.errors import ConfigError
from deploycompress.sweep.axes import Choice, Range
from deploycompress.sweep.reader import read


def mistakes(path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(path)
    return [str(problem).replace(str(path), "sweep.yaml") for problem in caught.value.problems]


def test_it_is_read_with_its_axes_in_the_order_of_the_file(sweep_file):
    sweep = read(sweep_file())
    assert sweep.axes == (
        Choice("prune.target.macs", ("80%", "60%")),
        Range("distill.temperature", 1.0, 8.0),
    )
    assert [(o.name, o.direction, o.unit) for o in sweep.objectives] == [
        ("accuracy", "maximise", "share"),
        ("latency_p50", "minimise", "ms"),
    ]
    config = sweep.pipeline({"prune.target.macs": "60%", "distill.temperature": "3.5"})
    assert [s.config.temperature for s in config.stages if s.stage == "distill"] == [3.5]


CASES = {
    "a path that does not exist": (
        [("prune.target.macs", "prunee.target.macs")],
        ["sweep.yaml:4:3: search.prunee.target.macs: unknown path 'prunee'; did you mean 'prune'?"],
    ),
    "a key that does not exist": (
        [("distill.temperature", "distill.temprature")],
        ["sweep.yaml:5:3: search.distill.temprature: unknown key 'temprature'; did you mean 'temperature'?"],
    ),
    "a value that the path does not take": (
        [("[80%, 60%]", "[80%, 60 ms]")],
        ["sweep.yaml:4:28: search.prune.target.macs.1: received '60 ms': unknown unit 'ms'"],
    ),
    "an end of a range that the path does not take": (
        [("low: 1.0", "low: -1.0")],
        ["sweep.yaml:5:30: search.distill.temperature.low: received -1, expected a number above 0"],
    ),
    "an empty range": (
        [("low: 1.0, high: 8.0", "low: 8, high: 1")],
        ["sweep.yaml:5:24: search.distill.temperature: an empty range: low 8 is not below high 1"],
    ),
    "an empty list": (
        [("[80%, 60%]", "[]")],
        ["sweep.yaml:4:22: search.prune.target.macs: an empty list: there is nothing to try"],
    ),
    "two units": (
        [("{low: 1.0, high: 8.0}", "{low: 10%, high: 2 ms}")],
        ["sweep.yaml:5:41: search.distill.temperature.high: received 2 ms, expected the unit of low: 10%"],
    ),
    "a logarithm of zero": (
        [("{low: 1.0, high: 8.0}", "{low: 0, high: 8, log: true}")],
        ["sweep.yaml:5:30: search.distill.temperature.low: received 0, expected more than 0"],
    ),
    "one value twice": (
        [("[80%, 60%]", "[80%, 80%]")],
        ["sweep.yaml:4:28: search.prune.target.macs.1: 80% is there twice"],
    ),
    "no values": (
        [("[80%, 60%]", "7")],
        ["sweep.yaml:4:22: search.prune.target.macs: received 7, expected a list of values"],
    ),
    "a range in a grid": (
        [("budget: 4 trials", "method: grid")],
        ["sweep.yaml:5:24: search.distill.temperature: grid needs values to enumerate"],
    ),
    "an objective that there is not": (
        [("latency_p50: minimise", "latency: minimise")],
        ["sweep.yaml:6:34: objectives.latency: unknown objective 'latency'; did you mean 'latency_p50'?"],
    ),
    "objectives that nothing produces": (
        [("latency_p50: minimise", "energy: minimise, packed_size: minimise")],
        [
            "sweep.yaml:6:34: objectives.energy: nothing produces energy: no device measures energy",
            "sweep.yaml:6:52: objectives.packed_size: nothing produces packed_size: it comes from a pack stage",
        ],
    ),
    "a metric that the task does not have": (
        [("latency_p50: minimise", '"metric:miou": maximise')],
        ["sweep.yaml:6:34: objectives.metric:miou: unknown metric of classification 'miou'"],
    ),
    "the wrong way": (
        [("accuracy: maximise", "accuracy: minimise")],
        ["sweep.yaml:6:24: objectives.accuracy: received minimise, but accuracy is better the other way"],
    ),
    "a base that is not there": (
        [("pipeline: pipeline.yaml", "pipeline: pipelin.yaml")],
        ["sweep.yaml:2:11: pipeline: 'pipelin.yaml' does not exist; did you mean pipeline.yaml?"],
    ),
    "no budget": (
        [("budget: 4 trials\n", "")],
        ["sweep.yaml:1:1: the key 'budget' is missing: how much tpe may try"],
    ),
    "a budget without a unit": (
        [("4 trials", "4")],
        ["sweep.yaml:7:9: budget: received 4: the unit is missing; expected a quantity such as 30 trials"],
    ),
    "a search and a matrix": (
        [("budget: 4 trials", "budget: 4 trials\nmatrix: {seed: [1, 2]}")],
        ["sweep.yaml:8:1: matrix: search and matrix are given; expected one of them"],
    ),
    "a path inside another": (
        [("distill.temperature: {low: 1.0, high: 8.0}", "prune.target: [{macs: 50%}]")],
        ["sweep.yaml:4:3: search.prune.target.macs: 'prune.target' is set as well, and lies around it"],
    ),
    "pruning by a step that is not there": (
        [("budget: 4 trials", "budget: 4 trials\npruning: {step: export, after: 1 epoch}")],
        ["sweep.yaml:8:17: pruning.step: received 'export', no train or distill step of the base; expected"],
    ),
    "an unknown key and a duplicate one": (
        [("budget: 4 trials", "budjet: 4 trials\nname: other")],
        [
            "sweep.yaml:7:1: budjet: unknown key 'budjet'; did you mean 'budget'?",
            "sweep.yaml:8:1: name: duplicate key 'name'",
        ],
    ),
    "a competitor without weights that are there": (
        [("budget: 4 trials", "budget: 4 trials\ncompetitors: [{name: a, weights: a.safetensors}]")],
        ["sweep.yaml:8:34: competitors.0.weights: 'a.safetensors' does not exist"],
    ),
    "a competitor that cannot be found": (
        [("budget: 4 trials", "budget: 4 trials\ncompetitors: [{name: a, build: no_such_module:small}]")],
        ["sweep.yaml:8:32: competitors.0.build: 'no_such_module:small': no module named 'no_such_module'"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_with_its_place(sweep_file, case):
    replaced, expected = CASES[case]
    said = mistakes(sweep_file(*replaced))
    assert len(said) == len(expected), said
    for line, beginning in zip(said, expected, strict=True):
        assert line.startswith(beginning), line


def test_all_mistakes_are_told_together(sweep_file):
    said = mistakes(
        sweep_file(("prune.target", "prune.tarket"), ("8.0}", "0.5}"), ("accuracy: max", "accurracy: max"))
    )
    assert len(said) == 3, said


def test_a_mistake_of_the_base_is_told_with_its_own_place(sweep_file, tiny):
    tiny.write_text(tiny.read_text().replace("epochs: 1, lr: 0.1", "epoch: 1"))
    assert "pipeline.yaml:10:13: stages.0.train.epoch: unknown key 'epoch'" in mistakes(sweep_file())[0]


MATRIX = """
name: many
pipeline: pipeline.yaml
matrix:
  distill.temperature: [2, 4]
  train.lr: [0.1, 0.05]
  prune.target.macs: {low: 40%, high: 80%, step: 20%}
"""


def test_a_matrix_varies_the_last_stage_fastest(sweep_file):
    """Each combination once; what trains comes first, so that each training serves all that follow from it."""
    combinations = read(sweep_file(text=MATRIX)).matrix
    assert len({tuple(c.values()) for c in combinations}) == 12
    order = [(c["train.lr"], c["prune.target.macs"], c["distill.temperature"]) for c in combinations]
    assert order[:3] == [("0.1", "40%", "2"), ("0.1", "40%", "4"), ("0.1", "60%", "2")]
    changes = [sum(a[i] != b[i] for a, b in itertools.pairwise(order)) for i in range(3)]
    assert changes == [1, 5, 11], "trainings, prunings and distillations that begin anew"


def test_values_that_do_not_go_together_are_found_before_the_first_trial(sweep_file):
    text = MATRIX.replace("train.lr: [0.1, 0.05]", "train.schedule: [cosine, linear]").replace(
        "distill.temperature: [2, 4]", "distill.loss: [kd, mse]\n  stages.3.export: [{}, {opset: 1}]"
    )
    said = mistakes(sweep_file(text=text))
    assert any("stages.3.export" in line for line in said), said
