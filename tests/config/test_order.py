"""The order of the steps: kinds that do not fit, sources that are not there, gates that nothing feeds."""

from __future__ import annotations

import pytest

from deploycompress.config.order import flow


def test_who_reads_what(reading, good) -> None:
    config = reading(good)
    hops = list(flow(config.stages, [s.id for s in config.stages]))
    assert {hop.id: hop.sources["source"] for hop in hops} == {
        "train": ("model",),
        "prune": ("train",),
        "distill": ("prune",),
        "export": ("distill",),
        "quantize": ("export",),
        "build_engine": ("export",),
        "benchmark": ("export", "quantize", "build_engine"),
    }
    assert hops[1].sources["original"] == ("original",)
    assert hops[3].makes == {"onnx"} and hops[6].makes == frozenset()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [("  - export: {opset: 18}\n", ""), ("{from: export}", "")],
            ["14:5: stages.3: quantize reads onnx, but distill makes checkpoint; put `- export` before it"],
        ),
        (
            [("- benchmark", "- quantize\n  - benchmark")],
            ["17:5: stages.6: quantize reads onnx, but build_engine makes engine; "
             "name a step before it that does with `from: quantize`"],
        ),
        (
            [("from: export", "from: distill")],
            ["16:26: stages.5.build_engine.from: build_engine reads onnx, but distill makes checkpoint; "
             "name a step before it that does with `from: quantize`"],
        ),
        ([("from: export", "from: original")], ["build_engine reads onnx, but original is checkpoint"]),
        ([("from: export", "from: model")], ["build_engine reads onnx, but model makes checkpoint"]),
        (
            [("from: export", "from: exprot")],
            ["16:26: stages.5.build_engine.from: unknown step 'exprot'; did you mean 'export'? Known: model, train, "
             "prune, distill, export, quantize, original, baseline, or a file"],
        ),
        ([("from: export", "from: all")], ["16:26: stages.5.build_engine.from: a step reads one source"]),
        ([("from: export", "from: build_engine")], ["'build_engine' is this step itself; give an earlier one"]),
        (
            [("- quantize", "- quantize: {from: benchmark}")],
            ["stages.4.quantize.from: 'benchmark' is a later step; give an earlier one: model, train, prune, distill, export"],
        ),
        ([("{mode: quick}", "{from: export}")], ["17:23: stages.6.benchmark.from: benchmark reads all; leave `from` out"]),
        (
            [("{epochs: 8}", "{teacher: trian}")],
            ["13:24: stages.2.distill.teacher: unknown step 'trian'; did you mean 'train'?"],
        ),
        (
            [("  - export: {opset: 18}\n  - quantize\n  - build_engine: {from: export}\n", "")],
            ["14:5: stages.3.benchmark: benchmark reads engine or onnx, and no step before it makes one; put `- export`"],
        ),
        (
            [("  - train: {epochs: 12, lr: 1e-2}\n", "")],
            ["5:3: model.weights: no weights are given and no train stage makes them; give a file, or begin with `- train`"],
        ),
        (
            [("  - train: {epochs: 12, lr: 1e-2}\n", ""), ("  weights: null\n", "")],
            ["2:1: model: no weights are given and no train stage makes them"],
        ),
        (
            [("  - benchmark: {mode: quick}\n", ""), ("latency_p50: {min_speedup: 3.0}", "packed_size: {max: 1 MB}")],
            ["18:3: gates.accuracy: nothing produces accuracy: it comes from a benchmark stage; add `- benchmark` to stages",
             "19:3: gates.packed_size: nothing produces packed_size: it comes from a pack stage; add `- pack` to stages"],
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(refused, good, changes, expected) -> None:
    lines = refused(good, *changes)
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line


@pytest.mark.parametrize(
    "changes",
    [
        [("- quantize", "- benchmark\n  - quantize")],  # benchmark passes its source on
        [("from: export", "from: baseline")],
        [("{epochs: 8}", "{teacher: train}")],
        [("- quantize", "- quantize: {from: given.onnx}")],
        [("- train: {epochs: 12, lr: 1e-2}", "- own.py:Train"), ("accuracy", "packed_size"), ("{max_drop: 1 pp, ", "{max: 1 MB, ")],
    ],
)  # fmt: skip
def test_what_fits(reading, good, folder, changes) -> None:
    (folder / "given.onnx").write_bytes(b"")
    (folder / "own.py").write_text("class Train: ...\n")
    reading(good, *changes)


def test_a_repeated_step_has_its_fault_once(refused, good) -> None:
    lines = refused(
        good,
        ("- quantize", "- repeat: 4\n    stages: [quantize, distill]"),
        ("- build_engine: {from: export}", "- export"),
    )
    assert [line.partition(", but ")[0] for line in lines] == [
        "pipeline.yaml:16:14: stages.4.stages.0: quantize reads onnx",
        "pipeline.yaml:16:24: stages.4.stages.1: distill reads checkpoint",
    ]


def test_a_file_as_source_has_the_kind_of_its_name(refused, good, folder) -> None:
    (folder / "given.engine").write_bytes(b"")
    (line,) = refused(good, ("- quantize", "- quantize: {from: given.engine}"))
    assert "quantize reads onnx, but " in line and "given.engine is engine; name a step before it" in line


def test_a_broken_step_does_not_make_others_look_broken(refused, good) -> None:
    (line,) = refused(good, ("{opset: 18}", "{opset: x}"))  # quantize still finds `export`
    assert "received 'x', expected a whole number" in line
    (line,) = refused(good, ("- benchmark", "- benchmrak"))  # the gates are not without their stage
    assert "unknown stage 'benchmrak'; did you mean 'benchmark'?" in line
