"""Whole runs of a tiny pipeline: reuse, resume, signals, steps that die; kills are in test_reliability.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploycompress.engine.explaining import Difference, explain
from deploycompress.engine.pipeline import run as run_pipeline
from deploycompress.engine.store import FileStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_server")]

STEPS = ["model", "train", "baseline", "prune", "distill", "export", "quantize", "benchmark"]


def start(pipeline: Path, *more: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "deploycompress",
            "run",
            str(pipeline),
            "--out",
            str(pipeline.parent / "run"),
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen, seconds: float = 120) -> str:
    output, _ = process.communicate(timeout=seconds)
    return output


def run(pipeline: Path, *more: str, code: int = 0) -> str:
    process = start(pipeline, *more)
    output = finish(process)
    assert process.returncode == code, output
    return output


@pytest.fixture
def ran(tiny: Path, command) -> Callable[..., str]:
    """As ``run``, in this process: where nothing depends on the run's own."""

    def run_it(*more: str) -> str:
        code, said = command("run", tiny, "--out", tiny.parent / "run", *more, cwd=tiny.parent)
        assert code == 0, said
        return said

    return run_it


def records(pipeline: Path) -> dict[str, dict]:
    return {s["id"]: s for s in json.loads((pipeline.parent / "run" / "run.json").read_text())["steps"]}


def manifests(pipeline: Path) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted((pipeline.parent / "run").glob("[0-9]*/manifest.json"))]


def digests(pipeline: Path) -> dict[str, list[str]]:
    return {
        m["id"]: [a["sha256"] for a in m["artifacts"]] for m in manifests(pipeline) if m["id"] != "benchmark"
    }


def reused(pipeline: Path) -> set[str]:
    return {id for id, record in records(pipeline).items() if record["reused"]}


def processes_of(pipeline: Path) -> list[int]:
    """Every living process whose command line or log names this run."""
    marked = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(p) for p in (folder / "fd").iterdir()}
        except OSError:
            continue
        if any(link.startswith(str(pipeline.parent / "run")) for link in links):
            marked.append(int(folder.name))
    return marked


def test_a_second_run_reuses_everything_but_the_benchmark_and_says_so(tiny, own_store, ran):
    first = ran()
    assert "rehearsal: the whole chain" in first and "Passed: tiny" in first
    assert [*records(tiny)] == STEPS and reused(tiny) == set()
    before = digests(tiny)

    second = ran()
    assert reused(tiny) == set(STEPS) - {"model", "benchmark"}
    assert "01-train: reused from the store" in second and "rehearsal" not in second
    assert digests(tiny) == before
    assert len(list((tiny.parent / "run" / "history").iterdir())) == 1

    ran("--set", "prune.target.macs=50%", "--no-rehearsal")
    assert reused(tiny) == {"train", "baseline"}
    why = explain(tiny.parent / "run", "prune", FileStore(own_store))
    assert why.differences == (Difference("config.target.macs", "60%", "50%"),)
    assert explain(tiny.parent / "run", "train", FileStore(own_store)).differences == ()
    assert {m["inexact"] for m in manifests(tiny)} == {None, "it is measured"}

    model = tiny.parent / "model.py"
    model.write_text(model.read_text().replace("trains in a second", "trains in one second"))
    ran("--no-rehearsal")
    assert reused(tiny) == set()


def _gone(pipeline: Path) -> None:
    deadline = time.monotonic() + 10
    while processes_of(pipeline) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(pipeline) == [], "a worker outlived its run"


def test_a_run_directory_in_use_is_refused_after_a_wait(tiny):
    first = start(tiny)
    for line in first.stdout:
        if "rehearsal" in line:
            break
    os.kill(first.pid, signal.SIGSTOP)
    try:
        output = run(tiny, code=3)
        assert "another run holds the lock" in output and "--out" in output
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_time_with_its_code(tiny, ran, number):
    long = ("--set", "train.epochs=40", "--no-rehearsal")
    process = start(tiny, *long)
    for line in process.stdout:
        if "01-train: epoch" in line:
            break
    sent = time.monotonic()
    process.send_signal(number)
    output = finish(process, 60)
    assert time.monotonic() - sent < 7.5
    assert process.returncode == 128 + number, output
    assert "interrupted" in output
    _gone(tiny)
    if number == signal.SIGTERM:
        again = ran(*long)
        assert "training goes on after step" in again and "01-train: done" in again


def test_rounds_and_from_and_an_engine_that_cannot_be_built(tiny, ran):
    text = tiny.read_text()
    head, tail = text.index("  - prune"), text.index("gates:")
    steps = """
  - repeat: 2
    stages:
      - prune: {target: {macs: 40%}, criterion: magnitude}
      - distill: {epochs: 1, lr: 0.05}
  - export
  - build_engine: {required: false, from: export}
  - quantize: {from: export}
  - benchmark
"""
    tiny.write_text(text[:head] + steps.lstrip("\n") + text[tail:])
    ran("--no-rehearsal")
    folder = tiny.parent / "run"
    report = json.loads((folder / "report.json").read_text())
    ratios = [
        json.loads((folder / f"{number:02d}-prune@{round}" / "manifest.json").read_text())["metrics"][
            "macs_ratio"
        ]
        for number, round in ((3, 1), (5, 2))
    ]
    assert 0.4 < ratios[0] <= 0.4**0.5 and 0.25 < ratios[1] <= 0.4
    engine = next(s for s in report["stages"] if s["name"] == "build_engine")
    if not any(a["kind"] == "engine" for a in report["artifacts"]):
        assert [n["kind"] for n in engine["notes"]] == ["skipped"]
    assert {m["artifact"] for m in report["measurements"]} >= {"baseline", "export", "quantize"}


FAULTS = '''
"""A stage that goes wrong in the way it is told."""
import os, signal, time
from typing import Literal

from deploycompress.contracts import Outcome, Stage


class Fault(Stage):
    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})

    class Config(Stage.Config):
        how: Literal["segv", "kill", "hang", "stop", "exit", "raise", "nan", "disk", "library disk", "memory"]

    def run(self, inputs, workdir, context):
        how = self.config.how
        if context.rehearsal:
            time.sleep(3600 if how == "hang" else 0)
            return Outcome()
        (workdir / "half-written").write_text("x")
        if how == "segv":
            print("the last words of a native library", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(3600)
        if how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "exit":
            os._exit(7)
        if how == "library disk":
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        if how == "memory":
            import torch
            torch.zeros(10**15)
        if how == "raise":
            raise ValueError("a bug in the stage")
        if how == "disk":
            raise OSError(28, "No space left on device", "model.onnx")
        return Outcome(metrics={"loss": float("nan")})
'''


class Said:
    """A listener that keeps every sentence."""

    def __init__(self) -> None:
        self.text = ""

    def planned(self, run_dir, steps) -> None: ...
    def joined(self, step, planned) -> None: ...
    def started(self, step_id) -> None: ...

    def event(self, event) -> None:
        self.text += event.message + "\n"

    def finished(self, record) -> None:
        self.text += (record.error or {"message": ""})["message"] + "\n"


def run_here(pipeline: Path) -> tuple[dict, str]:
    """The report and what was said; in this process, so that all such runs share one fork server."""
    listener = Said()
    report = run_pipeline(pipeline, listener, out=pipeline.parent / "run", rehearsal=False)
    return dict(report), listener.text


def test_a_step_that_hangs_in_the_rehearsal_has_its_timeout_there(tiny):
    (tiny.parent / "faults.py").write_text(FAULTS)
    text = tiny.read_text()
    begin = text[: text.index("  - prune")]
    tiny.write_text(f"{begin}  - faults.py:Fault: {{how: hang, timeout: 2 s, id: fault}}\ngates: {{}}\n")
    listener = Said()
    report = run_pipeline(tiny, listener, out=tiny.parent / "run")
    assert (report["verdict"], report["exit_code"]) == ("error", 4)
    assert "rehearsal: step fault: not finished after 2 s (its `timeout`); it was ended" in listener.text
    assert "train" not in [id for id, of in records(tiny).items() if of["state"] == "done"]


def test_a_model_whose_making_does_not_end(tiny):
    model = tiny.parent / "model.py"
    model.write_text(
        model.read_text().replace("    return nn", "    import time; time.sleep(3600)\n    return nn")
    )
    tiny.write_text(tiny.read_text().replace("  build: model", "  timeout: 2 s\n  build: model"))
    report, said = run_here(tiny)
    assert (report["verdict"], report["exit_code"]) == ("error", 4)
    assert "model: not finished after 2 s (its `timeout`)" in said


HOWS = {
    "segv": (4, ["SIGSEGV", "a crash in native code", "the last words of a native library"]),
    "kill": (4, ["SIGKILL", "memory"]),
    "hang": (4, ["not finished after 2 s (its `timeout`)"]),
    "stop": (4, ["not finished after 2 s (its `timeout`)"]),
    "library disk": (3, ["no room to write: I/O error"]),
    "memory": (4, ["out of memory; use a smaller batch_size"]),
    "exit": (4, ["exit code 7"]),
    "raise": (4, ["unexpected ValueError: a bug in the stage", "log.txt"]),
    "nan": (4, ["NaN or infinite"]),
    "disk": (3, ["no room to write model.onnx"]),
}


@pytest.mark.parametrize("how", HOWS)
def test_a_step_that_dies_is_a_failed_step_and_what_was_finished_is_kept(tiny, how):
    (tiny.parent / "faults.py").write_text(FAULTS)
    text = tiny.read_text()
    start_of, end_of = text.index("  - prune"), text.index("gates:")
    timeout = "2 s" if how in ("hang", "stop") else "60 s"
    fault = f"  - faults.py:Fault: {{how: '{how}', timeout: {timeout}, id: fault}}\n"
    tiny.write_text(
        text[:start_of]
        + fault
        + text[end_of:].replace("artifact_size: {max: 1 MB}", "{}").replace("gates:\n  {}", "gates: {}")
    )
    code, words = HOWS[how]
    report, said = run_here(tiny)
    for word in words:
        assert word in said
    folder = tiny.parent / "run"
    assert (report["verdict"], report["exit_code"]) == ("error", code)
    assert records(tiny)["train"]["state"] == "done" and records(tiny)["fault"]["state"] == "failed"
    assert not list(folder.rglob("half-written")) and (folder / "01-train" / "manifest.json").exists()
