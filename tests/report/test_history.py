"""The earlier runs of a name: which count, and that those of two machines are never joined."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from deploycompress.config.schema import PipelineConfig
from deploycompress.report.build import build
from deploycompress.report.document import check
from deploycompress.report.history import MOST_RUNS
from deploycompress.report.trend import HEIGHT, WIDTH, trend

Make = Callable[..., tuple[PipelineConfig, Path]]


def test_earlier_runs_come_the_oldest_first_with_what_their_machine_differs_in(make_run: Make) -> None:
    report = build(*make_run(earlier=3))
    assert [run["started"][:10] for run in report["history"]] == ["2026-02-01", "2026-02-02", "2026-02-03"]
    assert [run["machine"] for run in report["history"]] == [
        [],
        ["processor: Example 3.1 GHz against Other 2 GHz"],
        [],
    ]
    first = report["history"][0]
    assert (first["p50_ms"], first["bytes"], first["metric"], first["best"]) == (
        0.2,
        90_000,
        0.98,
        "quantize",
    )
    assert first["speedup"]["low"] < first["speedup"]["value"] < first["speedup"]["high"]


def test_another_name_a_broken_file_and_what_is_too_old_are_left_out(make_run: Make) -> None:
    config, run_dir = make_run(earlier=MOST_RUNS + 2)
    files = sorted((run_dir / "history").iterdir())
    other = json.loads(files[-1].read_text()) | {"name": "another"}
    files[-1].write_text(json.dumps(other))
    files[-2].write_text("{")
    told = build(config, run_dir)["history"]
    assert len(told) == MOST_RUNS - 2 and told[0]["started"][:10] == "2026-02-03"


def test_lines_join_only_runs_on_this_machine(make_run: Make) -> None:
    config, run_dir = make_run(earlier=5)
    shown = trend(check(build(config, run_dir)))
    assert shown is not None
    # Machines: this, other, this, other, this, and this run on this one.
    speedup = shown.panels[0]
    assert [dot.here for dot in speedup.dots] == [True, False, True, False, True, True]
    spots = [f"{dot.x:.1f},{dot.y:.1f}" for dot in speedup.dots]
    assert speedup.line.split() == [spots[i] for i in (0, 2, 4, 5)]
    assert [panel.title for panel in shown.panels] == ["speed-up", "p50 latency", "accuracy", "size"]
    assert shown.elsewhere == 2 and shown.runs[0].started.startswith("2026-03-14")
    for panel in shown.panels:
        for dot in panel.dots:
            assert 0 <= dot.x <= WIDTH and 0 <= dot.y_high <= dot.y <= dot.y_low <= HEIGHT
    assert [run.elsewhere for run in shown.runs][2] == "processor: Example 3.1 GHz against Other 2 GHz"


def test_another_target_is_no_neighbour_either(make_run: Make) -> None:
    config, run_dir = make_run(earlier=1)
    (path,) = (run_dir / "history").iterdir()
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"target": old["target"] | {"threads": 8}}))
    shown = trend(check(build(config, run_dir)))
    assert shown is not None and shown.elsewhere == 1 and len(shown.panels[0].line.split()) == 1
    assert shown.runs[1].elsewhere == "target: threads 8"


def test_a_first_run_has_no_history(make_run: Make) -> None:
    assert trend(check(build(*make_run()))) is None
