"""Rounds that are undone: which steps are made, with which targets, and what goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploycompress.commands.progress import View
from deploycompress.config.reader import dump, read
from deploycompress.contracts import MetricInfo
from deploycompress.engine import rounds
from deploycompress.engine.pipeline import run as run_pipeline
from deploycompress.engine.plan import plan
from deploycompress.errors import ConfigError

pytestmark = pytest.mark.usefixtures("warm_server")
ACCURACY = MetricInfo("accuracy", True, "share")
REPEAT = """
  - train: {epochs: 1}
  - repeat: 3
    schedule: linear
    stages:
      - prune: {target: {macs: 40%}, align: 2, criterion: magnitude}
      - distill: {epochs: 1}
    back_off: {max_drop: 2 pp}
  - export: {simplify: false}
  - benchmark
"""


def write(tiny: Path, stages: str = REPEAT) -> Path:
    text = tiny.read_text()
    head, tail = text.index("stages:"), text.index("gates:")
    tiny.write_text(text[:head] + "stages:" + stages + text[tail:])
    return tiny


class Played:
    """A run whose rounds end with the accuracies that it is given."""

    def __init__(self, accuracies: dict[str, float | None]) -> None:
        self.accuracies = accuracies
        self.targets: dict[str, str] = {}
        self.undone: dict[str, str] = {}
        self.settled: dict[str, str | None] = {}

    def attempt(self, step, planned) -> None:
        if step.stage_name == "prune":
            self.targets[step.id] = step.stage.config.target.macs.text

    def undo(self, attempt, planned, reason) -> None:
        self.undone |= {step.id: reason for step in attempt}

    def settle(self, planned, good, source) -> None:
        for number, step in enumerate(planned):
            self.settled[step.id] = source if good is None else good[number].id

    def validated(self, step_id, or_before):
        assert or_before == (step_id == "train")
        return self.accuracies.get(step_id)


def played(tiny: Path, primary: MetricInfo = ACCURACY, **accuracies: float | None) -> Played:
    (repeat,) = [p for p in rounds.parts(plan(read(write(tiny)))) if isinstance(p, rounds.Repeat)]
    run = Played({"train": 0.9} | {id.replace("_", "@"): value for id, value in accuracies.items()})
    rounds.make(repeat, primary, run)
    return run


def test_good_rounds_go_on_as_planned(tiny):
    run = played(tiny, distill_1=0.95, distill_2=0.89, distill_3=0.881)
    assert run.targets == {"prune@1": "80%", "prune@2": "60%", "prune@3": "40%"}
    assert run.undone == run.settled == {}


def test_half_of_a_step_is_tried_where_the_whole_costs_too_much(tiny):
    run = played(tiny, distill_1=0.9, distill_2=0.85, distill_2b=0.89, distill_3=0.86, distill_3b=0.889)
    assert run.targets == {
        "prune@1": "80%",
        "prune@2": "60%",
        "prune@2b": "70%",  # half-way from 80 to 60
        "prune@3": "40%",
        "prune@3b": "55%",  # half-way from the 70 that were good
    }
    assert set(run.undone) == {"prune@2", "distill@2", "prune@3", "distill@3"}
    assert run.undone["distill@2"] == (
        "undone at macs 60%: accuracy on the validation split is 85.00 %, 5.00 pp worse than 90.00 % before the "
        "first round; allowed are 2.00 pp; half of the step is tried"
    )
    assert run.settled == {}


def test_after_the_last_attempt_the_last_good_round_goes_on(tiny):
    run = played(tiny, distill_1=0.9, distill_2=0.1, distill_2b=0.2, distill_2c=0.3)
    assert run.targets == {"prune@1": "80%", "prune@2": "60%", "prune@2b": "70%", "prune@2c": "75%"}
    assert run.undone["prune@2c"].endswith("allowed are 2.00 pp; distill@1 at macs 80% goes on")
    assert run.settled == {id: id[:-1] + "1" for id in ("prune@2", "distill@2", "prune@3", "distill@3")}


def test_where_no_round_is_good_the_model_before_goes_on(tiny):
    run = played(tiny, distill_1=0.1, distill_1b=0.2, distill_1c=0.3)
    assert run.targets == {"prune@1": "80%", "prune@1b": "90%", "prune@1c": "95%"}
    assert run.undone["prune@1c"].endswith("; the model before the first round goes on")
    assert set(run.settled) == {f"{s}@{n}" for s in ("prune", "distill") for n in (1, 2, 3)}
    assert set(run.settled.values()) == {"train"}


def test_a_metric_that_should_be_low(tiny):
    loss = MetricInfo("loss", False, "")
    run = played(tiny, loss, distill_1=0.915, distill_2=0.85, distill_3=0.93, distill_3b=0.9)
    assert set(run.undone) == {"prune@3", "distill@3"}


def test_a_round_that_tells_no_accuracy_is_an_error(tiny):
    with pytest.raises(ConfigError, match="back_off: distill@1 gives no val_accuracy to judge the round by"):
        played(tiny)
    with pytest.raises(ConfigError, match="back_off: no step before prune@1 gives val_accuracy"):
        played(tiny, train=None)


def test_steps_and_repeats_in_order(tiny):
    second = REPEAT[REPEAT.index("  - repeat") : REPEAT.index("  - export")]
    text = REPEAT.replace(
        "  - export",
        second.replace("back_off: {max_drop: 2 pp}", "back_off: {max_drop: 0.01}") + "  - export",
    )
    config = read(write(tiny, text))
    found = list(rounds.parts(plan(config)))
    assert [type(p).__name__ for p in found] == ["Step", "Step", "Step", "Repeat", "Repeat", "Step", "Step"]
    assert [s.id for s in found[4].rounds[0]] == ["prune-2@1", "distill-2@1"]
    assert [p.max_drop for p in found[3:5]] == pytest.approx([0.02, 0.01])
    tiny.write_text(dump(config))
    assert read(tiny) == config


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("target: {macs: 40%}", "target: {macs: 2 M}", "received 2 M: an absolute target cannot be halved"),
        ("repeat: 3", "repeat: 1", "expected at least 2 rounds where there is back_off"),
        ("- prune: {target: {macs: 40%}, align: 2, criterion: magnitude}", "- distill", "there is no step to halve"),
        ("max_drop: 2 pp", "max_drop: 2 ms", "received '2 ms'|unknown unit 'ms'"),
        ("{epochs: 1}\n  - repeat", "{epochs: 1, back_off: 2 pp}\n  - repeat", "it belongs to a repeat"),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration(tiny, before, after, message):
    assert before in REPEAT
    with pytest.raises(ConfigError, match=message):
        read(write(tiny, REPEAT.replace(before, after)))


class Heard:
    """A listener that keeps which steps joined, and what was decided."""

    def __init__(self) -> None:
        self.joins: list[tuple[str, str]] = []
        self.decided: list[str] = []

    def planned(self, run_dir, steps) -> None: ...
    def started(self, step_id) -> None: ...
    def finished(self, record) -> None: ...

    def joined(self, step, planned) -> None:
        self.joins.append((step.id, planned.id))

    def event(self, event) -> None:
        self.decided += [event.message] if event.kind == "decision" else []


def test_a_whole_run_undoes_rounds_and_a_second_one_decides_the_same(tiny, monkeypatch):
    """No round can be 200 points better, so each of them is undone; the model before them is what is exported."""
    stages = (
        REPEAT.replace("2 pp", "-200 pp").replace("repeat: 3", "repeat: 2").replace("  - benchmark\n", "")
    )
    write(tiny, stages).write_text(
        tiny.read_text().replace("gates:\n  artifact_size: {max: 1 MB}\n", "gates: {}\n")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])  # a run adds the pipeline's folder
    folder = tiny.parent / "run"
    tried = [f"{s}@1{letter}" for letter in ("", "b", "c") for s in ("prune", "distill")]
    for second in (False, True):
        heard = Heard()
        report = run_pipeline(tiny, heard, out=folder, rehearsal=False)
        assert report["verdict"] == "pass"
        steps = {step["id"]: step for step in json.loads((folder / "run.json").read_text())["steps"]}
        assert [*steps] == ["model", "train", *tried, "export"]
        assert all(
            bool(steps[id]["undone"]) == (id in tried) and steps[id]["state"] == "done" for id in steps
        )
        assert {id for id in steps if steps[id]["reused"]} == (
            {"train", *tried, "export"} if second else set()
        )
        assert heard.joins == [(id, id[:-1]) for id in tried if not id.endswith("@1")]
        assert sum("undone at macs" in message for message in heard.decided) == 3
    manifest = json.loads((folder / steps["export"]["directory"] / "manifest.json").read_text())
    assert [given["id"] for given in manifest["inputs"]["source"]] == ["train"]
    assert (folder / "03-distill@1b" / "model" / "model.safetensors").is_file()
    notes = {stage["name"]: [n["message"] for n in stage["notes"]] for stage in report["stages"]}
    assert notes["distill@1b"][-1].startswith("undone at macs 85%") and report["widths"] == []
    assert "undone at macs" in (folder / "report.html").read_text()


def test_what_is_shown_of_a_step_that_joins(tiny):
    class Screen:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def line(self, text: str) -> None:
            self.lines.append(text)

        def show(self, view) -> None: ...

    steps = plan(read(write(tiny)))
    view = View(Screen(), verbose=False, quiet=False)
    view.planned(tiny.parent, steps)
    planned = next(s for s in steps if s.id == "prune@2")
    view.joined(replace(planned, id="prune@2b", directory=f"{planned.directory}b"), planned)
    view.started("prune@2b")
    assert view.screen.lines[-1].endswith(f"{planned.directory}b: started")
    names = list(view.states)
    assert names.index(f"{planned.directory}b") == names.index(planned.directory) + 1
