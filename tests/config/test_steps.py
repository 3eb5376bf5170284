"""The list under ``stages``: ids, ``repeat``, and how targets follow its schedule."""

from __future__ import annotations

import pytest

from deploycompress import registry
from deploycompress.config.reader import dump, read
from deploycompress.config.schedule import of_round, remaining

PAIR = "  - prune: {target: {macs: 20%}, criterion: taylor}\n  - distill: {epochs: 8}\n"


def repeat(settings: str, *stages: str) -> tuple[str, str]:
    return PAIR, f"  - {settings}\n    stages:\n" + "".join(f"      - {stage}\n" for stage in stages)


def test_repeat_is_written_out(reading, good) -> None:
    config = reading(good, repeat("repeat: 2", "prune: {target: {macs: 25%}}", "distill: {epochs: 3}"))
    assert [s.id for s in config.stages[1:6]] == ["prune@1", "distill@1", "prune@2", "distill@2", "export"]
    assert [s.config.target.macs.text for s in config.stages[1:5:2]] == ["50%", "25%"]
    assert all(s.config.epochs == 3 for s in config.stages[2:5:2])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [0.8, 0.6, 0.4, 0.2]), ("exponential", [0.2**0.25, 0.2**0.5, 0.2**0.75, 0.2])],
)
def test_schedules(schedule, expected) -> None:
    assert [remaining(0.2, k, 4, schedule) for k in (1, 2, 3, 4)] == pytest.approx(expected)


def test_a_schedule_is_monotone_and_ends_at_what_was_written(reading, good) -> None:
    config = reading(
        good, repeat("repeat: 4\n    schedule: linear", "prune: {target: {macs: 20%, ratio: 0.4, size: 40%}}")
    )
    targets = [s.config.target for s in config.stages if s.stage == "prune"]
    assert [t.macs.text for t in targets] == ["80%", "60%", "40%", "20%"]
    assert [t.ratio.value for t in targets] == pytest.approx([0.1, 0.2, 0.3, 0.4])  # removed: it accumulates
    assert [t.size.value for t in targets] == pytest.approx([0.85, 0.7, 0.55, 0.4])


def test_ratio_counts_what_is_removed() -> None:
    assert of_round("ratio", 0.75, 1, 2, "exponential") == pytest.approx(0.5)  # half of the channels, twice
    assert of_round("ratio", "75%", 1, 2, "exponential") == "50%"
    assert of_round("macs", "25%", 1, 2, "exponential") == "50%"
    assert of_round("macs", "25%", 2, 2, "exponential") == "25%"
    assert of_round("sparsity", "75%", 1, 2, "exponential") == "50%"
    assert of_round("macs", "twenty", 1, 2, "linear") == "twenty"  # validation says what is wrong with it


def test_sparsity_grows_from_round_to_round(reading, good, monkeypatch) -> None:
    monkeypatch.setitem(registry.STAGES._entries, "sparsify", "deploycompress.stages.sparsify:Sparsify")
    config = reading(good, repeat("repeat: 3\n    schedule: linear", "sparsify: {sparsity: 90%}", "distill"))
    steps = [s.config.sparsity for s in config.stages if s.stage == "sparsify"]
    assert [s.value for s in steps] == pytest.approx([0.3, 0.6, 0.9])
    config = reading(good, repeat("repeat: 2", "sparsify: {pattern: '2:4'}", "distill"))
    assert [s.config.sparsity for s in config.stages if s.stage == "sparsify"] == [None, None]


def test_what_repeat_refuses(refused, reading, good) -> None:
    (line,) = refused(good, repeat("repeat: 2", "prune: {target: {macs: 1.5 M}}"))
    assert line == (
        "pipeline.yaml:14:32: stages.1.stages.0.prune.target.macs: received 1.5 M: an absolute target cannot "
        "follow a schedule; give the share that remains, as 50%"
    )
    reading(good, repeat("repeat: 1", "prune: {target: {macs: 1.5 M}}"))
    (line,) = refused(good, repeat("repeat: 0", "distill"))
    assert line == "pipeline.yaml:12:13: stages.1.repeat: received 0, expected a number of at least 1"
    (line,) = refused(good, repeat("repeat: 2.0", "distill"))
    assert line.startswith("pipeline.yaml:12:13: stages.1.repeat: received 2.0")
    (line,) = refused(good, repeat("repeat: 1000000", "distill"))
    assert "expected a number of at most 100" in line
    (line,) = refused(good, repeat("repeat: 2\n    shedule: linear", "distill"))
    assert (
        "13:5: stages.1.shedule: unknown key 'shedule'; did you mean 'schedule'? Known: repeat, stages, sched"
        in line
    )
    (line,) = refused(good, repeat("repeat: 2\n    schedule: cosine", "distill"))
    assert "13:15: stages.1.schedule: received 'cosine', expected linear or exponential" in line
    (line,) = refused(good, (PAIR, "  - repeat: 2\n"))
    assert "stages.1.stages: the key 'stages' is missing" in line
    (line,) = refused(good, (PAIR, "  - {repeat: 2, stages: []}\n"))
    assert "stages.1.stages: received a list of 0, expected at least 1 of them" in line
    (line,) = refused(good, repeat("repeat: 2", "{repeat: 2, stages: [distill]}"))
    assert "stages.1.stages.0: a repeat inside a repeat is not supported" in line
    (line,) = refused(good, repeat("repeat: 2", "distill: {id: 'd@1'}"))
    assert "inside a repeat an id gets its round (@1, @2 ...) by itself" in line


def test_a_mistake_in_a_repeated_step_is_reported_once_at_its_line(refused, good) -> None:
    lines = refused(
        good, repeat("repeat: 3", "prune: {target: {macs: 20%}, align: 0}", "distill: {epoch: 3}")
    )
    assert [line.partition(": unknown")[0].partition(": received")[0] for line in lines] == [
        "pipeline.yaml:14:45: stages.1.stages.0.prune.align",
        "pipeline.yaml:15:19: stages.1.stages.1.distill.epoch",
    ]


def test_ids_of_several_steps_with_one_name(refused, reading, good) -> None:
    config = reading(
        good, ("- quantize", "- quantize\n  - export: {from: train}\n  - export: {from: distill}")
    )
    assert [s.id for s in config.stages] == [
        "train", "prune", "distill", "export", "quantize", "export-2", "export-3", "build_engine", "benchmark",
    ]  # fmt: skip
    (line,) = refused(good, ("- quantize", "- quantize: {id: export-2}\n  - export: {from: train}"))
    assert "16:13: stages.5.export.id: duplicate id 'export-2'; an earlier step has it" in line


def test_from_in_and_around_a_repeat(refused, reading, good) -> None:
    inner = ("prune: {target: {macs: 25%}, from: distill}", "distill: {from: prune}")
    (line,) = refused(good, repeat("repeat: 3", *inner))
    assert (
        "14:44: stages.1.stages.0.prune.from: 'distill@1' is a later step; give an earlier one: model, train"
        in line
    )
    inner = ("distill: {from: train}", "prune: {target: {macs: 25%}, from: distill}")
    config = reading(good, repeat("repeat: 2", *inner), ("{opset: 18}", "{from: prune}"))
    assert [s.source for s in config.stages[1:6]] == ["train", "distill@1", "train", "distill@2", "prune@2"]


@pytest.mark.parametrize(
    "step",
    ["sparsify: {pattern: '2:4'}", "sparsify: {sparsity: 80%}", "sparsify: {sparsity: 80%, scope: layer}"],
)
def test_what_a_step_is_told_reads_the_same_with_its_defaults_filled_in(
    reading, good, tmp_path, monkeypatch, step
) -> None:
    """A step's process reads the configuration that the run wrote down."""
    monkeypatch.setitem(registry.STAGES._entries, "sparsify", "deploycompress.stages.sparsify:Sparsify")
    config = reading(good, repeat("repeat: 1", step, "distill"))
    written = tmp_path / "config.yaml"
    written.write_text(dump(config), encoding="utf-8")
    assert read(written) == config
