"""report.json's document, built from the records of real directories: a whole run, a failed one, others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.artifact import canonical_json, read_json, write_json
from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import AccuracyGate, LatencyGate, PipelineConfig
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.report.build import build
from deploycompress.report.document import check

Make = Callable[..., tuple[PipelineConfig, Path]]
RELIED_UPON = {
    "": {"schema", "name", "verdict", "exit_code", "stages", "artifacts", "measurements", "gates", "best"}
    | {"environment"},
    "stages": {"name", "kind", "seconds", "reused", "metrics", "notes"},
    "artifacts": {"id", "kind", "path", "sha256", "bytes", "stage", "precision", "metrics"},
    "measurements": {"artifact", "runtime", "device", "threads", "batch_size", "latency_ms", "speedup"}
    | {"peak_memory_bytes", "load_ms", "first_inference_ms"},
    "gates": {"metric", "limit", "value", "verdict"},
}


def test_a_whole_run_passes(make_run: Make) -> None:
    report = build(*make_run())
    assert (report["verdict"], report["exit_code"], report["error"]) == ("pass", 0, None)
    assert report["best"] == {"artifact": "quantize", "runtime": "onnxruntime"}
    assert [g["verdict"] for g in report["gates"]] == ["pass"] * 3
    assert report["baseline"] == "baseline"
    check(report)
    canonical_json(report)


def test_the_keys_that_other_tools_rely_on(make_run: Make) -> None:
    report = build(*make_run())
    for place, keys in RELIED_UPON.items():
        for entry in [report] if not place else report[place]:
            assert keys <= set(entry), place
    latency = report["measurements"][0]["latency_ms"]
    assert set(latency) == {"p50", "p90", "p99", "mean", "samples", "seconds"}
    assert set(report["measurements"][1]["speedup"]) == {"value", "low", "high"}


def test_paths_lead_from_the_run_directory(make_run: Make) -> None:
    config, run_dir = make_run()
    report = build(config, run_dir)
    paths = {a["id"]: a["path"] for a in report["artifacts"]}
    assert paths["quantize"] == "06-quantize/model.onnx"
    assert paths["prune"] == "03-prune/model"
    assert all((run_dir / path).exists() for path in paths.values())
    assert report["measurements"][0]["samples"] == "08-benchmark/samples/baseline.json"


def test_metrics_on_the_test_split_join_the_artefacts(make_run: Make) -> None:
    report = build(*make_run())
    metrics = {a["id"]: a["metrics"] for a in report["artifacts"]}
    assert metrics["quantize"]["accuracy"] == pytest.approx(591 / 600)
    difference = report["differences"]["quantize"]
    assert difference["value"] == pytest.approx(-2 / 600)
    assert difference["low"] < difference["value"] < difference["high"]


def test_the_waterfall_leads_from_the_baseline_to_the_best(make_run: Make) -> None:
    report = build(*make_run())
    steps = [(row["steps"], row["artifact"]) for row in report["waterfall"]]
    assert steps == [
        (["baseline"], "baseline"),
        (["prune", "distill", "export"], "export"),
        (["quantize"], "quantize"),
    ]
    assert [row["latency_ms"] for row in report["waterfall"]] == [0.862, 0.2243, 0.1916]
    assert [row["bytes"] for row in report["waterfall"]] == [1_231_400, 257_300, 81_900]
    assert [row["step"] for row in report["validation"]] == ["train", "prune", "distill"]


def test_the_waterfall_ends_at_the_best_not_at_the_last(make_run: Make) -> None:
    slow_int8 = {"baseline": 0.862, "export": 0.22, "quantize": 0.39}
    report = build(*make_run(latency_ms=slow_int8))
    assert report["best"]["artifact"] == "export"
    assert [row["artifact"] for row in report["waterfall"]] == ["baseline", "export"]


def test_widths_of_repeated_pruning_run_from_first_to_last(make_run: Make) -> None:
    config, run_dir = make_run()
    path = run_dir / "04-distill" / "manifest.json"
    manifest = read_json(path)
    manifest["details"] = {"widths": [{"layer": "stem.conv", "before": 16, "after": 8}]}
    write_json(path, manifest)
    widths = {row["layer"]: row for row in build(config, run_dir)["widths"]}
    assert widths["stem.conv"] == {"layer": "stem.conv", "before": 32, "after": 8}
    assert widths["head"] == {"layer": "head", "before": 10, "after": 10}


@pytest.mark.parametrize("exit_code", [2, 3, 4, 130])
def test_a_run_that_failed_midway_has_a_report_with_its_exit_code(make_run: Make, exit_code: int) -> None:
    report = build(*make_run(fails_at="export", exit_code=exit_code))
    assert (report["verdict"], report["exit_code"]) == ("error", exit_code)
    assert report["error"]["step"] == "export"
    assert report["best"] is None and report["ships"] == [] and report["waterfall"] == []
    states = {s["name"]: s["state"] for s in report["stages"]}
    assert (states["distill"], states["export"], states["benchmark"]) == ("done", "failed", "not_run")
    assert {g["message"] for g in report["gates"]} == {"not measured: the run stopped in export"}
    assert {a["id"] for a in report["artifacts"]} == {"model", "train", "baseline", "prune", "distill"}
    check(report)


def test_a_run_that_failed_at_once_has_a_report(make_run: Make) -> None:
    report = build(*make_run(fails_at="model", exit_code=2))
    assert (report["verdict"], report["exit_code"], report["artifacts"]) == ("error", 2, [])
    assert report["environment"] == {}
    check(report)


def test_a_manifest_left_by_an_earlier_run_is_not_read(make_run: Make) -> None:
    make_run()
    report = build(*make_run(fails_at="quantize"))
    assert "quantize" not in {a["id"] for a in report["artifacts"]}
    assert report["measurements"] == []


def test_a_failed_rehearsal_is_an_error_without_a_failed_step(make_run: Make) -> None:
    config, run_dir = make_run(fails_at="train")
    run = read_json(run_dir / "run.json")
    run["steps"][1] |= {"state": "not_run", "error": None}
    run["rehearsal"] = {"state": "failed", "seconds": 2.0}
    run["error"] = {"class": "StageFailed", "message": "rehearsal: step export would fail", "exit_code": 4}
    write_json(run_dir / "run.json", run)
    report = build(config, run_dir)
    assert (report["verdict"], report["exit_code"]) == ("error", 4)
    assert report["error"]["step"] == "rehearsal"


def test_an_interrupted_run_says_where_it_goes_on(make_run: Make) -> None:
    config, run_dir = make_run(fails_at="distill")
    run = read_json(run_dir / "run.json")
    run["steps"][4] |= {"state": "not_run", "error": None}
    write_json(run_dir / "run.json", run | {"error": None})
    report = build(config, run_dir)
    assert report["verdict"] == "error"
    assert report["error"]["message"].startswith("the run ended before distill was done")


@pytest.mark.parametrize(
    ("gates", "verdict", "exit_code"),
    [
        ({"latency_p50": LatencyGate(min_speedup=9)}, "fail", 5),
        ({"latency_p50": LatencyGate(min_speedup=4.5)}, "inconclusive", 5),
        ({"latency_p50": LatencyGate(min_speedup=4.5, on_inconclusive="warn")}, "pass", 0),
        ({"accuracy": AccuracyGate(max_drop=Quantity(0.01, "points", "1 pp"))}, "inconclusive", 5),
        ({}, "pass", 0),
    ],
)
def test_verdict_and_exit_code_follow_the_gates(
    make_run: Make, gates: dict[str, Any], verdict: str, exit_code: int
) -> None:
    report = build(*make_run(gates=gates))
    assert (report["verdict"], report["exit_code"]) == (verdict, exit_code)


def test_the_command_names_the_program_not_where_it_was_installed(make_run: Make) -> None:
    assert build(*make_run())["command"] == "deploycompress run 'pipelines/quick start.yaml'"


def test_a_directory_without_a_run_is_refused(tmp_path: Path, make_run: Make) -> None:
    config, run_dir = make_run()
    with pytest.raises(ConfigError, match="holds no readable record of a run"):
        build(config, tmp_path / "elsewhere")
    (run_dir / "03-prune" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no readable record of a run"):
        build(config, run_dir)


def test_lost_scores_are_an_error_not_a_passed_gate(make_run: Make) -> None:
    config, run_dir = make_run()
    (run_dir / "08-benchmark" / "scores.json").unlink()
    with pytest.raises(StageFailed, match=r"benchmark: its scores in scores\.json cannot be read back"):
        build(config, run_dir)


def test_the_same_run_gives_the_same_report(make_run: Make) -> None:
    config, run_dir = make_run()
    assert json.dumps(build(config, run_dir)) == json.dumps(build(config, run_dir))


@pytest.mark.parametrize(("low", "told"), [(0.98, "no gain"), (1.21, "1.30x as fast")])
def test_what_zeros_bring_is_told_as_it_was_measured(make_run: Make, low: float, told: str) -> None:
    config, run_dir = make_run()
    path = run_dir / "08-benchmark" / "manifest.json"
    manifest = read_json(path)
    sparse = {"export": {"zeros": 0.8, "value": 1.3, "low": low, "high": 1.4}}
    write_json(path, manifest | {"details": manifest["details"] | {"sparse": sparse}})
    remark = f"80% of its weights are zero: {told} on this runtime (onnxruntime)"
    rows = build(config, run_dir)["measurements"]
    found = [(row["artifact"], row["at_target"]) for row in rows if remark in row["notes"]]
    assert found == [("export", True)]
