"""``--set``: what a path may begin with, what it changes, and what comes back when it is wrong."""

from __future__ import annotations

import pytest

TOP = "a top-level key (name, seed, model, task, data, target, stages, gates)"
REPEATED = (
    "  - prune: {target: {macs: 20%}, criterion: taylor}\n  - distill: {epochs: 8}\n",
    "  - repeat: 3\n    stages:\n      - prune: {target: {macs: 20%}}\n      - distill\n",
)


@pytest.mark.parametrize(
    ("text", "get", "expected"),
    [
        ("prune.target.macs=30%", lambda c: c.stages[1].config.target.macs.text, "30%"),
        ("prune.target={size: 300 KB}", lambda c: c.stages[1].config.target.size.value, 300e3),
        ("prune.align=16", lambda c: c.stages[1].config.align, 16),
        ("stages.1.prune.align=16", lambda c: c.stages[1].config.align, 16),
        (
            "quantize.scheme=s8s8",
            lambda c: c.stages[4].config.scheme,
            "s8s8",
        ),  # `- quantize` has no mapping yet
        ("quantize.id=int8", lambda c: c.stages[4].id, "int8"),
        ("build_engine.from=quantize", lambda c: c.stages[5].source, "quantize"),
        ("train.timeout=10 min", lambda c: c.stages[0].timeout.value, 600e3),
        ("train.betas=[0.9, 0.99]", lambda c: c.stages[0].config.betas, (0.9, 0.99)),
        ("train.lr=1e-3", lambda c: c.stages[0].config.lr, 1e-3),
        ("model.args.depth=20", lambda c: c.model.args, {"width": 32, "depth": 20}),
        ("model.args={}", lambda c: c.model.args, {}),
        ("data.version='3'", lambda c: c.data.version, "3"),
        ("seed=7", lambda c: c.seed, 7),
        ("task={name: classification, args: {classes: 3}}", lambda c: c.task.args, {"classes": 3}),
        ("gates.latency_p50.max=2 ms", lambda c: c.gates["latency_p50"].max.value, 2.0),
        ("gates.metric:f1.min=0.9", lambda c: c.gates["metric:f1"].min.value, 0.9),
        ("gates={}", lambda c: dict(c.gates), {}),
        ("model.weights=", lambda c: c.model.weights, None),
        (" seed = 7", lambda c: c.seed, 7),
    ],
)
def test_replaces_one_value(reading, good, text, get, expected) -> None:
    assert get(reading(good, sets=(text,))) == expected


def test_later_ones_win_and_earlier_ones_are_seen(reading, good) -> None:
    config = reading(good, sets=("target={threads: 4}", "target.batch_size=2", "target.threads=8"))
    assert (config.target.threads, config.target.batch_size, config.target.runtime) == (8, 2, "onnxruntime")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed", "expected key.key=value, such as prune.target.macs=30%"),
        ("=3", "expected key.key=value"),
        ("a..b=3", "expected key.key=value"),
        ("train.epochs=[", "the value is not YAML: while parsing a flow node"),
        ("train.epochs=!x 3", "the value is the tag !x is not allowed"),
        ("model.args={a: 1, a: 2}", "duplicate key 'a'"),
        ("prun.align=8", f"unknown path 'prun'; did you mean 'prune'? A path begins with {TOP} or a step's id (train, prune, "),
        ("zzz=1", f"unknown path 'zzz'; a path begins with {TOP} or a step's id (train, prune, distill"),
        ("prune.critrion=x", "unknown key 'critrion'; did you mean 'criterion'? Known: target"),
        ("prune.target.macs=3 ms", "received '3 ms': unknown unit 'ms'; expected a quantity such as 50% or 1.5 M"),
        ("prune.align.x=8", "received a mapping (x), expected auto or a whole number"),
        ("train.epochs.x=8", "train.epochs is 12 and has no 'x'; set train.epochs as a whole"),
        ("task.args={}", "task is 'classification' and has no 'args'; set task as a whole"),
        ("stages.9.prune.align=8", "stages is a list of 7; expected 0 to 6, received '9'"),
        ("stages.x=8", "stages is a list of 7; expected 0 to 6, received 'x'"),
        ("prune=8", "received 8, expected a mapping, as prune: {key: value}"),
        ("stages=[]", "no stage is given"),
        ("gates.latency=1", "unknown gate 'latency'; did you mean 'latency_p50'?"),
        ("model.weights=none.pt", "'none.pt' does not exist; looked in"),
        ("prune@2.align=8", "unknown path 'prune@2'; did you mean 'prune'?"),
        ("build_engine.from=exprot", "unknown step 'exprot'; did you mean 'export'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_placed_at_the_override(refused, good, text: str, expected: str) -> None:
    lines = refused(good, sets=(text,))
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"--set {text}: "), lines
    assert expected in lines[0]


def test_ambiguous_names_are_refused(refused, reading, good) -> None:
    two = ("- quantize", "- export: {from: train}\n  - quantize: {from: export}")
    (line,) = refused(good, two, sets=("export.opset=17",))
    assert line == (
        "--set export.opset=17: 'export' is ambiguous: the steps 'export' and 'export-2' run it; "
        "give each an id of its own in the file"
    )
    assert reading(good, two, sets=("export-2.opset=17",)).stages[4].config.opset == 17
    named = ("- export: {opset: 18}", "- export: {opset: 18, id: export}")
    config = reading(
        good,
        named,
        ("- quantize", "- export: {from: train, id: other}\n  - quantize"),
        sets=("export.opset=17",),
    )
    assert [s.config.opset for s in config.stages if s.stage == "export"] == [17, 18]
    (line,) = refused(good, ("- quantize", "- quantize: {id: data}"), sets=("data.batch_size=3",))
    assert "'data' is ambiguous: a top-level key and a step's id" in line


def test_a_repeated_step_as_written_or_in_one_round(refused, reading, good) -> None:
    def macs(*sets: str) -> list[str]:
        config = reading(good, REPEATED, sets=sets)
        return [s.config.target.macs.text for s in config.stages if s.stage == "prune"]

    assert macs() == ["58.480355%", "34.199519%", "20%"]
    assert macs("prune.target.macs=12.5%") == ["50%", "25%", "12.5%"]  # the schedule follows
    assert macs("prune@2.target.macs=40%") == ["58.480355%", "40%", "20%"]  # this round alone
    (line,) = refused(good, REPEATED, sets=("prune@4.align=8",))
    assert line == "--set prune@4.align=8: 'prune' has the rounds prune@1 to prune@3; received 'prune@4'"
    (line,) = refused(good, REPEATED, sets=("distill@2.epochs=none",))
    assert line == "--set distill@2.epochs=none: received 'none', expected a whole number"
    (line,) = refused(good, REPEATED, sets=("distill.epochs=none",))
    assert line == "--set distill.epochs=none: received 'none', expected a whole number"
