"""What came of a trial, read from its report; the front, the best one, and the sweep's exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.reader import read as read_pipeline
from deploycompress.errors import ConfigError
from deploycompress.report.document import check
from deploycompress.sweep import document, jobs
from deploycompress.sweep.jobs import Job
from deploycompress.sweep.objectives import Objective, Value, value_of
from deploycompress.sweep.schema import Competitor
from deploycompress.sweep.study import Trial

ACCURACY = Objective("accuracy", "maximise", "share")
LATENCY = Objective("latency_p50", "minimise", "ms")
BOTH = [ACCURACY, LATENCY]


def artefact(id: str, size: int) -> dict[str, Any]:
    return {
        "id": id,
        "kind": "onnx",
        "path": id,
        "sha256": id,
        "bytes": size,
        "stage": id,
        "precision": "fp32",
    }


def row(id: str, p50: float, speedup: tuple[float, float, float] | None, **metrics: float) -> dict[str, Any]:
    latency = {"p50": p50, "p90": 2 * p50, "p99": None, "mean": p50, "samples": 99, "seconds": 1.0}
    gain = None if speedup is None else dict(zip(("value", "low", "high"), speedup, strict=True))
    return {"artifact": id, "runtime": "onnxruntime", "device": "local", "threads": 1, "batch_size": 2,
            "latency_ms": latency, "speedup": gain, "peak_memory_bytes": 7, "metrics": metrics}  # fmt: skip


REPORT: dict[str, Any] = {
    "schema": 1,
    "name": "tiny",
    "verdict": "pass",
    "exit_code": 0,
    "baseline": "baseline",
    "best": {"artifact": "quantize", "runtime": "onnxruntime"},
    "artifacts": [artefact("baseline", 1000), artefact("quantize", 100)],
    "measurements": [
        row("baseline", 4.0, None, accuracy=0.9, worst_class=0.8),
        row("quantize", 1.0, (4.0, 3.2, 5.0), accuracy=0.88, worst_class=0.7, f1=0.85),
    ],
    "differences": {"quantize": {"value": -0.02, "low": -0.03, "high": -0.005, "samples": 600}},
    "by_class": {"quantize": {"recall": {"3": 0.5}}},
    "gates": [],
    "stages": [],
    "environment": {},
}

VALUES = {
    "accuracy": Value(0.88, 0.87, 0.895),
    "metric:accuracy": Value(0.88, 0.87, 0.895),
    "metric:f1": Value(0.85, 0.85, 0.85),
    "metric:recall.3": Value(0.5, 0.5, 0.5),
    "worst_class": Value(0.7, 0.7, 0.7),
    "latency_p50": Value(1.0, 0.8, 1.25),
    "latency_p90": Value(2.0, 2.0, 2.0),
    "latency_p99": None,  # too few samples
    "throughput": Value(2000.0, 2000.0, 2000.0),
    "speedup": Value(4.0, 3.2, 5.0),
    "artifact_size": Value(100.0, 100.0, 100.0),
    "packed_size": Value(60.0, 60.0, 60.0),
    "peak_memory": Value(7.0, 7.0, 7.0),
}


@pytest.mark.parametrize("objective", VALUES)
def test_each_objective_is_the_best_artefacts_figure_with_its_interval(objective):
    found, expected = value_of(objective, "quantize", check(REPORT), {"quantize": 60}), VALUES[objective]
    if expected is None:
        assert found is None
    else:
        assert found is not None
        ours, theirs = (found.value, found.low, found.high), (expected.value, expected.low, expected.high)
        assert ours == pytest.approx(theirs)


def test_the_baseline_is_its_own_reference():
    assert value_of("speedup", "baseline", check(REPORT), {}) == Value(1.0, 1.0, 1.0)
    assert value_of("latency_p50", "baseline", check(REPORT), {}) == Value(4.0, 4.0, 4.0)


# ---------------------------------------------------------------- an ended run


@pytest.fixture
def ended(tmp_path: Path):
    """(outcome.json, report.json) -> the record of a trial in a folder with these."""

    def record(outcome: dict | None, report: dict | None, code: int = 0) -> dict[str, Any]:
        job = Job(tmp_path / "trials" / "3", Trial(3, {"distill.temperature": "4"}))
        job.folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("outcome.json", outcome), ("report.json", report)):
            if content is not None:
                (job.folder / name).write_text(json.dumps(content))
        return jobs.outcome(job, code, BOTH, 12.0)

    return record


FINE = {"exit_code": 0, "error": ""}


def test_a_run_that_ended_is_complete_whether_or_not_its_gates_hold(ended):
    assert ended(FINE, REPORT)["state"] == "complete"
    failed = ended({"exit_code": 5, "error": ""}, {**REPORT, "verdict": "fail", "exit_code": 5})
    assert (failed["state"], failed["verdict"], failed["exit_code"]) == ("complete", "fail", 5)
    assert failed["values"] == {"distill.temperature": "4"} and failed["folder"] == "trials/3"


def test_a_crash_an_error_and_a_failed_step_are_told(ended):
    crash = ended(None, None, -11)
    assert (crash["state"], crash["exit_code"]) == ("failed", 4) and "by signal 11" in crash["error"]
    refused = ended({"exit_code": 3, "error": "device board is away"}, None, 3)
    assert (refused["exit_code"], refused["error"]) == (3, "device board is away")
    step = {
        "step": "train",
        "class": "StageFailed",
        "message": "train: the loss is NaN\nmore",
        "exit_code": 4,
    }
    broken = ended(FINE, {**REPORT, "verdict": "error", "exit_code": 4, "error": step})
    assert (broken["state"], broken["exit_code"], broken["error"]) == ("failed", 4, "train: the loss is NaN")


def test_a_report_without_an_objective_is_a_failure_that_names_it(ended):
    rows = [row("baseline", 4.0, None), row("quantize", 1.0, None)]
    record = ended(FINE, {**REPORT, "measurements": rows})
    assert record["state"] == "failed" and "no accuracy of the best artefact" in record["error"]


# ---------------------------------------------------------------- all of them


def trial(
    name: str, accuracy: float, latency: float, verdict: str = "pass", state: str = "complete"
) -> dict[str, Any]:
    values = {"accuracy": accuracy, "latency_p50": latency}
    told = {n: {"value": v, "low": v, "high": v} for n, v in values.items()}
    return {"name": name, "state": state, "verdict": verdict, "objectives": told, "exit_code": 4}


def test_the_front_holds_what_no_other_one_beats():
    trials = [trial("slow", 0.9, 4), trial("fast", 0.8, 1), trial("worse", 0.8, 2), trial("same", 0.8, 1)]
    assert [t["name"] for t in document.front(trials, BOTH)] == ["slow", "fast", "same"]


def test_the_best_is_the_fastest_that_meets_the_gates():
    trials = [trial("slow", 0.9, 4), trial("fast", 0.85, 2), trial("fastest", 0.5, 1, "fail")]
    assert document.best_of(trials, BOTH)["name"] == "fast"
    assert document.best_of(trials, [ACCURACY])["name"] == "slow"
    assert document.best_of(trials[2:], BOTH) is None


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([trial("a", 1, 1, "fail"), trial("b", 1, 1, "pass")], ("pass", 0)),
        ([trial("a", 1, 1, "fail"), trial("b", 1, 1, "inconclusive")], ("fail", 5)),
        ([trial("a", 1, 1, "pruned", "pruned")], ("fail", 5)),
        ([trial("a", 1, 1, "error", "failed"), trial("b", 1, 1, "fail")], ("fail", 5)),
        ([trial("a", 1, 1, "error", "failed")], ("error", 4)),
    ],
    ids=["one passes", "none passes", "all hopeless", "one failed", "all failed"],
)
def test_the_exit_code_is_that_of_a_run(trials, expected):
    assert document.outcome(trials) == expected


def test_a_competitor_is_the_base_without_what_compresses(tiny):
    base = read_pipeline(tiny)
    small = jobs.competing(base, Competitor(name="small", args={"width": 8}), "many-small")
    assert [s.stage for s in small.stages] == ["train", "export", "benchmark"]
    assert small.model.build == base.model.build and small.model.args == {"width": 8}
    weights = jobs.competing(base, Competitor(name="known", weights=tiny), "many-known")
    assert [s.stage for s in weights.stages] == ["export", "benchmark"]
    untrained = base.model_copy(update={"stages": base.stages[1:]})
    with pytest.raises(ConfigError, match="competitors: small: it has no weights"):
        jobs.competing(untrained, Competitor(name="small"), "x")
