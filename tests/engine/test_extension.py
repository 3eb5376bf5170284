"""Gates that ask for a longer measurement: how long, for which, and when it is enough; once in a real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import Gate, LatencyGate
from deploycompress.contracts import Event
from deploycompress.engine.extension import extend
from deploycompress.engine.plan import Step
from deploycompress.stages.benchmark import Benchmark

EXTEND = LatencyGate(min_speedup=2.0, on_inconclusive="extend")


@dataclass
class Bench:
    """A run whose benchmark takes a second a block, and whose gate is decided after so many measurements."""

    decided_after: int
    metric: str = "latency_p50"
    made: list[tuple[str, int]] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    took_s: float = 3.0
    judging_s: float = 0.0

    def judged(self) -> Sequence[Mapping[str, Any]]:
        done = len(self.made) >= self.decided_after
        return [{"metric": self.metric, "verdict": "pass" if done else "inconclusive"}]

    def seconds(self, step_id: str) -> tuple[float, float]:
        return self.took_s + self.judging_s, self.took_s

    def measure_again(self, step: Step) -> None:
        config = step.stage.config
        self.made.append((config.mode, config.times))
        self.took_s *= 2

    def tell(self, event: Event) -> None:
        self.told.append(event)


def bench_step(**config: Any) -> Step:
    return Step("bench", "benchmark", Benchmark(Benchmark.Config(**config)), "05-bench", {})


def extended(bench: Bench, gate: Gate = EXTEND, **config: Any) -> Bench:
    extend([bench_step(**config)], {bench.metric: gate}, bench)
    return bench


def test_twice_as_long_each_time_until_it_is_decided() -> None:
    bench = extended(Bench(decided_after=3))
    assert bench.made == [("quick", 2), ("quick", 4), ("quick", 8)]
    assert bench.told[0].message == (
        "latency_p50 could not be decided; measuring again, mode quick, 2 times as long"
    )


def test_the_budget_ends_it_before_it_is_used_up() -> None:
    bench = extended(Bench(decided_after=9), extend_up_to=Quantity.parse("15 s", "time"))
    assert bench.made == [("quick", 2), ("quick", 4)]  # about 6 and 12 s; the next would take 24
    assert bench.told[-1].message == (
        "latency_p50 could not be decided: a longer measurement would take 24 s, and of extend_up_to, 15 s, "
        "15 s are left"
    )


def test_a_p99_is_measured_in_full() -> None:
    gate = LatencyGate(max=Quantity.parse("1 ms", "time"), on_inconclusive="extend")
    assert extended(Bench(2, "latency_p99"), gate).made == [("full", 1), ("full", 2)]


def test_what_is_not_measuring_takes_no_longer() -> None:
    """As judging the test split, which a p99 in mode full has to wait for once more, and not fourteen times."""
    gate = LatencyGate(max=Quantity.parse("1 ms", "time"), on_inconclusive="extend")
    assert extended(Bench(1, "latency_p99", took_s=15.0, judging_s=120.0), gate).made == [("full", 1)]


@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_nothing_where_no_gate_asks_for_it(policy: Any) -> None:
    bench = extended(Bench(9), LatencyGate(min_speedup=2.0, on_inconclusive=policy))
    assert (bench.made, bench.told) == ([], [])


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a way to share one core")
def test_a_run_measures_again_and_says_what_is_still_open(tiny: Path) -> None:
    """On one core, of which others take more than half: nothing measured there decides a latency."""
    text = tiny.read_text()
    stages = text[text.index("stages:") :]
    tiny.write_text(
        text.replace(stages, "stages:\n  - train: {epochs: 1, lr: 0.1}\n  - export\n")
        + "  - benchmark: {extend_up_to: 40 s}\n"
        + "gates:\n  latency_p50: {max: 10 s, on_inconclusive: extend}\n"
    )
    core = min(os.sched_getaffinity(0))

    def on_one_core() -> None:
        os.sched_setaffinity(0, {core})

    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=on_one_core) for _ in range(1)
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "deploycompress", "run", str(tiny), "--no-rehearsal"],
            cwd=tiny.parent,
            capture_output=True,
            text=True,
            preexec_fn=on_one_core,
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert done.returncode == 5, done.stdout + done.stderr
    report = json.loads((tiny.parent / "runs" / "tiny" / "report.json").read_text())
    (gate,) = report["gates"]
    assert gate["verdict"] == "inconclusive" and "rounds were disturbed" in gate["message"]
    assert all(row["disturbed"] for row in report["measurements"])
    said = (tiny.parent / "runs" / "tiny" / "log.txt").read_text()
    assert "latency_p50 could not be decided; measuring again, mode quick, 2 times as long" in said
    assert "a longer measurement would take" in said
    raw = json.loads((tiny.parent / "runs" / "tiny" / report["measurements"][0]["samples"]).read_text())
    assert len(raw["blocks"]) >= 40
