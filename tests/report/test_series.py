"""The files for benchmark services, held against what Bencher and github-action-benchmark ask for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.schema import PipelineConfig
from deploycompress.report.build import build
from deploycompress.report.render import render

Make = Callable[..., tuple[PipelineConfig, Path]]
QUANTIZED = "digits-edge: quantize (local, onnxruntime cpu, 2 threads, batch 1)"
HOSTILE = '\n<b>|`\x1b[31m\u202e\ud800"\\%'


def written(make_run: Make, **changes: Any) -> tuple[dict[str, Any], Path]:
    config, run_dir = make_run(**changes)
    report = build(config, run_dir)
    render(report, run_dir)
    return report, run_dir


def bencher(run_dir: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Read as strictly as Bencher: its JSON schema, its longest names."""
    document = json.loads((run_dir / "bencher.json").read_bytes(), parse_constant=pytest.fail)
    assert isinstance(document, dict)
    for benchmark, measures in document.items():
        assert 0 < len(benchmark) <= 1024 and isinstance(measures, dict) and measures
        for measure, metric in measures.items():
            assert 0 < len(measure) <= 64
            assert {"value"} <= set(metric) <= {"value", "lower_value", "upper_value"}
            assert all(type(value) in (int, float) for value in metric.values())
    return document


def smaller_is_better(run_dir: Path) -> dict[str, tuple[float, str]]:
    """Read as github-action-benchmark does: a list of name, unit and value."""
    entries = json.loads((run_dir / "github-action-benchmark.json").read_bytes(), parse_constant=pytest.fail)
    assert isinstance(entries, list)
    for entry in entries:
        assert set(entry) == {"name", "unit", "value"}
        assert isinstance(entry["name"], str) and isinstance(entry["unit"], str) and entry["unit"]
        assert type(entry["value"]) in (int, float)
    found = {entry["name"]: (entry["value"], entry["unit"]) for entry in entries}
    assert len(found) == len(entries), "two series of one name are one zigzag"
    return found


def test_every_figure_has_its_unit_and_a_speed_up_its_interval(make_run: Make) -> None:
    report, run_dir = written(make_run)
    speedup = next(r for r in report["measurements"] if r["artifact"] == "quantize")["speedup"]
    found = bencher(run_dir)[QUANTIZED]
    assert found["latency"] == {"value": 191_600.0}, "nanoseconds, of which Bencher's own measure is"
    assert found["latency-p90-ns"] == {"value": 205_012.0}
    assert "latency-p99-ns" not in found, "512 samples do not support it"
    assert found["file-size"] == {"value": 81_900}
    assert found["accuracy"] == {"value": 1 - 9 / 600}
    assert found["speed-up"] == {
        "value": speedup["value"],
        "lower_value": speedup["low"],
        "upper_value": speedup["high"],
    }
    assert "speed-up" not in bencher(run_dir)[QUANTIZED.replace("quantize", "baseline")]
    smaller = smaller_is_better(run_dir)
    assert smaller[f"{QUANTIZED}: p50 latency"] == (0.1916, "ms")
    assert smaller[f"{QUANTIZED}: size"] == (81_900, "bytes")
    assert not [name for name in smaller if name.endswith((": accuracy", ": speed-up"))], "better the higher"


def test_an_error_that_the_task_measures_is_better_the_lower(make_run: Make) -> None:
    report, run_dir = written(make_run)
    report["primary"] = {"name": "log_loss", "higher_is_better": False, "unit": ""}
    render(report, run_dir)
    assert smaller_is_better(run_dir)[f"{QUANTIZED}: log_loss"] == (pytest.approx(0.06), "1")


def test_the_best_one_is_a_series_that_goes_on_when_another_is_best(make_run: Make) -> None:
    _, run_dir = written(make_run)
    assert bencher(run_dir)["digits-edge: best"] == bencher(run_dir)[QUANTIZED]
    slower = {"baseline": 0.862, "export": 0.1, "quantize": 0.1916}
    report, run_dir = written(make_run, latency_ms=slower)
    assert report["best"]["artifact"] == "export"
    assert bencher(run_dir)["digits-edge: best"]["latency"] == {"value": 100_000.0}


def test_another_run_has_the_same_names(make_run: Make) -> None:
    _, run_dir = written(make_run)
    before = list(bencher(run_dir)), list(smaller_is_better(run_dir))
    latency_ms = {"baseline": 0.9, "export": 0.21, "quantize": 0.19}
    _, run_dir = written(make_run, latency_ms=latency_ms)
    assert (list(bencher(run_dir)), list(smaller_is_better(run_dir))) == before


def test_a_run_that_measured_nothing_leaves_no_figures_of_the_one_before(make_run: Make) -> None:
    written(make_run)
    _, run_dir = written(make_run, fails_at="export")
    assert bencher(run_dir) == {} and smaller_is_better(run_dir) == {}


def test_hostile_names_and_numbers_keep_to_the_formats(make_run: Make) -> None:
    report, run_dir = written(make_run)
    plain = len(bencher(run_dir)), len(smaller_is_better(run_dir))

    def spoilt(value: Any) -> Any:
        if isinstance(value, Mapping):
            names = {"artifact": 300, "id": 300, "device": 3, "runtime": 3, "provider": 3}
            return {k: v + HOSTILE * names[k] if k in names else spoilt(v) for k, v in value.items()}
        return [spoilt(v) for v in value] if isinstance(value, list) else value

    worst = spoilt(copy.deepcopy(report)) | {
        "name": HOSTILE * 300,
        "baseline": report["baseline"] + HOSTILE * 300,
    }
    worst["measurements"][0]["latency_ms"]["p50"] = 1.7e308
    worst["measurements"].append(worst["measurements"][0])
    name = "accuracy" + HOSTILE * 20
    worst["primary"]["name"] = name
    worst["measurements"][1]["metrics"] = {name: 0.5}
    render(worst, run_dir)
    assert (len(bencher(run_dir)), len(smaller_is_better(run_dir))) == plain
    text = (run_dir / "bencher.json").read_text(encoding="utf-8")
    assert "\x1b" not in text and "\u202e" not in text
