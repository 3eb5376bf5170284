"""Whole sweeps: two trials at a time, killed and gone on with; a hopeless one; a signal. Real runs, on real digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploycompress.config.reader import read as read_pipeline
from deploycompress.config.yaml_file import load
from deploycompress.config.yaml_text import to_yaml
from deploycompress.devices import quiet
from deploycompress.sweep.pool import environment

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


def test_a_trial_leaves_the_job_s_summary_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has room for one run's, and GitHub drops all of what is too large."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("OTHER", "kept")
    given = environment(tmp_path, 2)
    assert "GITHUB_STEP_SUMMARY" not in given and given["OTHER"] == "kept"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """(file, *options) -> the sweep as a process, which ends with the test."""
    started = []

    def begin(sweep: Path, *more: str) -> subprocess.Popen:
        out = ["--out", str(sweep.parent / "out")]
        words = [sys.executable, "-m", "deploycompress", "sweep", str(sweep), *out, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(words, cwd=sweep.parent, start_new_session=True, **pipes))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()  # its trials end with it
            process.communicate()


def wait_for(process: subprocess.Popen, sweep: Path, trial: int, words: str, seconds: float = 400) -> None:
    log = sweep.parent / "out" / "trials" / str(trial) / "log.txt"
    deadline = time.monotonic() + seconds
    while not (log.is_file() and words in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{words!r} is not in {log}"
        time.sleep(0.05)


def left_over(folder: Path) -> list[int]:
    """Every living process with a file of this sweep open, or on its command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
            links = [os.readlink(p) for p in (process / "fd").iterdir()]
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(str(folder / "out") in text for text in [words, *links]):
            found.append(int(process.name))
    return found


def all_gone(folder: Path) -> None:
    deadline = time.monotonic() + 20  # one second where nothing else runs on the machine
    while left_over(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_over(folder) == [], "a process outlived its sweep"


def report_of(sweep: Path) -> dict:
    return json.loads((sweep.parent / "out" / "report.json").read_text())


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """pipelines/sweep-digits.yaml at toy size: small images, little training, two trials."""
    sweep = load(PIPELINES / "sweep-digits.yaml").data
    small = {"model.inputs.image.shape": ["batch", 1, 8, 8]}
    short = {"data.image_size": 8, "data.batch_size": 128, "train.epochs": 2, "distill.epochs": 1}
    loose = {"gates": {"artifact_size": {"max_ratio": "90%"}}}
    sweep |= {"pipeline": str(PIPELINES / "quickstart.yaml"), "set": {**small, **short, **loose}}
    sweep |= {"budget": "2 trials", "method": "random", "competitors": []}
    del sweep["pruning"]
    (tmp_path / "sweep.yaml").write_text(to_yaml(sweep))
    return tmp_path / "sweep.yaml"


def test_the_shipped_sweep_is_killed_and_goes_on_and_shares_what_it_can(digits, start):
    first = start(digits, "--workers", "2")
    wait_for(first, digits, 0, "prune: started")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    all_gone(digits.parent)

    watch = Watch(quiet.machine_lock(), digits.parent / "out")
    watch.start()
    again = start(digits, "--workers", "2")
    output, _ = again.communicate(timeout=600)
    watch.over = True
    watch.join()
    assert again.returncode == 0, output
    assert "going on: 2 trials were begun, 2 of them not ended" in output
    report = report_of(digits)
    trials = report["trials"]
    assert [(t["number"], t["state"], t["verdict"]) for t in trials] == [
        (i, "complete", "pass") for i in (0, 1)
    ]
    assert all("train" in t["reused"] for t in trials), "the training was over when the sweep was killed"
    assert sum("baseline" in t["made"] for t in trials) <= 1, "equal steps are made once"
    _is_whole(digits.parent / "out", report)
    assert watch.measured == {0, 1} and watch.alone_s > 4
    assert watch.disturbed_s < 0.05 * watch.alone_s, (watch.disturbed_s, watch.alone_s)
    all_gone(digits.parent)


def _is_whole(out: Path, report: dict) -> None:
    """The report, and the best pipeline as a file that reads as what the trial ran."""
    best = next(t for t in report["trials"] if t["name"] == report["best"])
    assert {"accuracy", "latency_p50"} == set(best["objectives"])
    assert best["objectives"]["latency_p50"]["low"] <= best["objectives"]["latency_p50"]["value"]
    assert set(report["front"]) <= {"trial 0", "trial 1", "unpruned"} and report["front"]
    assert best["saved_seconds"] > 0 and report["costs"]["steps_reused"] >= 2
    theirs = read_pipeline(out / best["folder"] / "pipeline.yaml")
    assert read_pipeline(out / "pipeline.yaml") == theirs.model_copy(update={"name": "sweep-digits-best"})
    assert theirs == read_pipeline(out / best["folder"] / "config.yaml")
    page = (out / "report.html").read_text()
    assert "Pareto front" in page and "prune.target.macs" in page and "<script" not in page


class Watch(threading.Thread):
    """Sums up the processor time that trials take while another one holds this machine for a measurement."""

    def __init__(self, lock: Path, out: Path) -> None:
        super().__init__(daemon=True)
        self.lock, self.out, self.over = lock, out, False
        self.alone_s = self.disturbed_s = 0.0
        self.measured: set[int] = set()  # trials

    def run(self) -> None:
        before: tuple[int | None, dict[int, tuple[int, float]], float] = (None, {}, 0.0)
        while not self.over:
            holder, trials, now = self.holder(), trial_processes(self.out), time.monotonic()
            if holder is not None and holder == before[0] and holder in trials:
                own = trials[holder][0]
                self.measured.add(own)
                self.alone_s += now - before[2]
                others = {pid: cpu_s for pid, (trial, cpu_s) in trials.items() if trial != own}
                self.disturbed_s += sum(
                    s - before[1][pid][1] for pid, s in others.items() if pid in before[1]
                )
            before = (holder, trials, now)
            time.sleep(0.1)

    def holder(self) -> int | None:
        """The process that has the lock for itself, as the kernel tells."""
        if not self.lock.exists():
            return None
        inode = f":{self.lock.stat().st_ino} "
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if inode in line]
        return next((int(words[4]) for words in held if words[1] == "FLOCK" and words[3] == "WRITE"), None)


def trial_processes(out: Path) -> dict[int, tuple[int, float]]:
    """Of the sweep in ``out``: process -> the number of its trial, and the processor seconds that it has taken."""
    parents, cpu_s, trials = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        cpu_s[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if "deploycompress.commands.trial" in words and words[-2].startswith(f"{out}/"):
            trials[pid] = int(Path(words[-2]).name)
    found = {}
    for pid in parents:
        root: int | None = pid
        while root is not None and root not in trials:
            root = parents.get(root)
        if root is not None:
            found[pid] = (trials[root], cpu_s[pid])
    return found


def test_a_hopeless_trial_is_ended_and_a_signal_keeps_what_was_done(sweep_file, tiny, start):
    tiny.write_text(tiny.read_text().replace("distill: {epochs: 1", "distill: {epochs: 100"))
    path = sweep_file(("4 trials", "1 trial\npruning: {step: distill, after: 2 epochs, min: 100%}"))
    path.write_text(path.read_text().replace("after: 2 epochs", "after: 90 epochs"))
    sweep = start(path)
    wait_for(sweep, path, 0, "distill: epoch 1/")
    sweep.send_signal(signal.SIGTERM)
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 143 and "run the same command again" in output, output
    all_gone(path.parent)

    path.write_text(path.read_text().replace("after: 90 epochs", "after: 2 epochs"))
    again = start(path)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 5, output
    assert "trial 0: pruned after" in output and "hopeless: accuracy" in output
    (trial,) = report_of(path)["trials"]
    assert trial["state"] == "pruned" and report_of(path)["verdict"] == "fail"
    assert not (path.parent / "out" / "pipeline.yaml").exists(), "nothing meets the gates"
    all_gone(path.parent)
