"""Measuring jobs on this machine, with real processes."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploycompress.devices import jobs
from deploycompress.devices.jobs import Candidate, measure, open_device, run_job, split
from deploycompress.devices.local import Local
from deploycompress.devices.results import Failed, Timing
from deploycompress.devices.runner import open_lock
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed
from deploycompress.measure.measurement import SMEARED, Latency, Measurement
from deploycompress.measure.plan import Plan

FEED = {"x": np.ones((2, 64), np.float32)}
Make = Callable[[str, int], Path]
SHORT = Plan(blocks=4, block_ms=10, warmup_ms=10, least_samples=8, again=0.0)


def candidate(id: str, path: Path, runtime: str = "onnxruntime", **options: object) -> Candidate:
    return Candidate(id, path, runtime, options=options)


def run(device: Local, candidates: list[Candidate], plan: Plan = SHORT) -> dict[str, Timing | Failed]:
    feed = FEED
    return dict(
        run_job(device, candidates, feed=feed, plan=plan, progress=lambda done, message: None).candidates
    )


def test_measures_files_side_by_side(device: Local, made: Make, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    found = measure(
        device,
        [candidate("base", made("base", 400)), candidate("small/one", made("small", 40))],
        baseline="base",
        feed=FEED,
        plan=Plan(blocks=8, block_ms=20, warmup_ms=20, least_samples=64),
        workdir=tmp_path,
        progress=lambda done, message: told.append((done, message)),
    )
    base, small = found["base"], found["small/one"]
    assert base.speedup is None
    assert small.speedup is not None and small.speedup.low > 2
    assert base.latency_ms.p90 is not None and base.latency_ms.samples >= 64
    assert (base.device, base.batch_size, base.threads) == ("local", 2, 1)
    assert base.load_ms and base.first_inference_ms
    assert base.peak_memory_bytes and 10e6 < base.peak_memory_bytes < 2e9
    raw = _raw(tmp_path, small)
    assert small.samples == "samples/small-one.json"
    assert sum(map(len, raw)) == small.latency_ms.samples and 4 <= len(raw) <= 12
    assert told == sorted(told, key=lambda entry: entry[0]) and told[-1][0] > 0.5


def test_weights_that_a_file_keeps_beside_it_travel_with_it(
    device: Local, made: Make, tmp_path: Path
) -> None:
    """As models above two gigabytes do."""
    model = onnx.load(made("base", 400))
    path = tmp_path / "apart" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").stat().st_size > path.stat().st_size
    found = run(device, [candidate("base", made("base", 400)), candidate("apart", path)])
    assert isinstance(found["apart"], Timing)


def test_a_known_latency_is_what_is_measured(device: Local, made: Make, wayward: str, tmp_path: Path) -> None:
    path = made("any", 1)
    found = measure(
        device,
        [candidate("slow", path, wayward, busy_ms=2), candidate("fast", path, wayward, busy_ms=1)],
        baseline="slow",
        feed=FEED,
        plan=Plan(blocks=8, block_ms=30, warmup_ms=10),
        workdir=tmp_path,
    )
    # Other processes only ever add to a call, so it is the least of the samples that is known.
    least = {id: min(min(b) for b in _raw(tmp_path, m)) / 1e6 for id, m in found.items()}
    assert 2.0 <= least["slow"] < 2.3
    assert 1.0 <= least["fast"] < 1.3
    speedup = found["fast"].speedup
    assert speedup is not None and speedup.low <= speedup.value <= speedup.high and speedup.high > 1.5


def _raw(folder: Path, measurement: Measurement) -> list[list[int]]:
    blocks: list[list[int]] = json.loads((folder / str(measurement.samples)).read_text())["blocks"]
    return blocks


def test_blocks_are_given_out_in_mirrored_order(
    device: Local, made: Make, wayward: str, tmp_path: Path
) -> None:
    path, order = made("any", 1), tmp_path / "order"
    run(device, [candidate(id, path, wayward, order=str(order), label=id) for id in "ab"])
    turns = "".join(label for label, _ in itertools.groupby(order.read_text()))
    assert turns == "ab" + "a" + "b" + "a" + "b" + "a"  # loading; then ab, ba, ab, ba, where neighbours merge


@pytest.mark.quiet
def test_a_disturbed_round_is_left_out_and_made_again(device: Local, made: Make, wayward: str) -> None:
    """A candidate that is kept from the processor for a while, as another process would.

    In about six rounds; a machine that is shared with others has disturbed ones beside them.
    """
    path = made("any", 1)
    calm, robbed = candidate("calm", path, wayward), candidate("robbed", path, wayward, robbed=True)
    plan = Plan(blocks=20, block_ms=20, warmup_ms=10)
    found = run_job(device, [calm, robbed], feed=FEED, plan=plan, progress=lambda done, message: None)
    assert found.quiet and any("crowded" in kinds for kinds in found.disturbed)
    assert 20 < len(found.disturbed) <= 30
    for timing in found.candidates.values():
        assert isinstance(timing, Timing)
        assert len(timing.blocks_ns) == sum(not kinds for kinds in found.disturbed) >= 10


def test_slow_candidates_get_as_many_rounds_as_they_cannot_do_without(device: Local, made: Make) -> None:
    plan = Plan(blocks=50, block_ms=30, warmup_ms=10, least_samples=30, fewest_blocks=3, enough_s=0.1)
    found = run_job(
        device,
        [candidate("it", made("any", 1))],
        feed=FEED,
        plan=plan,
        progress=lambda done, message: None,
    )
    assert 3 <= len(found.disturbed) < 20
    (timing,) = found.candidates.values()
    assert isinstance(timing, Timing) and all(len(block) >= 10 for block in timing.blocks_ns)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a way to share one core")
def test_what_others_take_all_the_time_decides_nothing(device: Local, made: Make, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(1)]
    try:
        found = measure(
            device,
            [candidate("base", made("base", 40)), candidate("same", made("base", 40))],
            baseline="base",
            feed=FEED,
            plan=Plan(blocks=6, block_ms=20, warmup_ms=20),
            workdir=tmp_path,
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, before)
    assert found["base"].disturbed and found["same"].disturbed
    (note,) = (note for note in found["base"].notes if "disturbed" in note)
    assert "short of processor time that other processes had" in note
    assert note.endswith("too many to leave out, so the times decide nothing")
    raw = json.loads((tmp_path / str(found["base"].samples)).read_text())
    assert len(raw["blocks"]) == len(raw["disturbed"]) == len(raw["states"]) - 1
    assert raw["set_aside"] == []


def test_a_crash_is_named_and_the_others_go_on(device: Local, made: Make, wayward: str) -> None:
    path = made("any", 1)
    found = run(
        device,
        [
            candidate("sound", path, wayward),
            candidate("crash", path, wayward, fail="crash"),
            candidate("raise", path, wayward, fail="raise"),
            candidate("load", path, wayward, fail="load"),
        ],
    )
    sound = found["sound"]
    assert isinstance(sound, Timing) and len(sound.blocks_ns + sound.set_aside_ns) == 4
    crash = found["crash"]
    assert isinstance(crash, Failed) and crash.kind == "signal"
    assert crash.message.startswith("its process was ended by SIGSEGV; it said: ")
    assert crash.message.endswith("about to crash")
    assert found["raise"] == Failed("run", "RuntimeError: the device was lost")
    assert found["load"] == Failed("load", "no kernel for this processor")


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (
            "crash",
            StageFailed,
            r"it on local in .*Wayward was not measured: its process was ended by SIGSEGV",
        ),
        ("nan", StageFailed, "it on local in .* gives NaN or infinite outputs"),
        ("load", EnvironmentMissing, "was not measured: no kernel for this processor"),
    ],
)
def test_what_measure_raises(
    device: Local, made: Make, wayward: str, tmp_path: Path, fail: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure(
            device,
            [candidate("it", made("any", 1), wayward, fail=fail)],
            baseline=None,
            feed=FEED,
            plan=Plan(blocks=2, block_ms=5, warmup_ms=5),
            workdir=tmp_path,
        )


def test_a_call_that_hangs_ends_with_the_deadline(
    device: Local, made: Make, wayward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOADING_S", 1.0)
    monkeypatch.setattr(jobs, "SLOWEST", 0)
    monkeypatch.setattr(jobs, "SLOWEST_CALL_S", 0.25)
    started = time.monotonic()
    found = run(device, [candidate("hangs", made("any", 1), wayward, fail="hang")])
    assert found["hangs"] == Failed("deadline", "it did not finish within the job's time limit")
    assert time.monotonic() - started < 60


def test_a_slow_candidate_has_as_long_as_its_calls_take(
    device: Local, made: Make, wayward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOADING_S", 1.0)
    monkeypatch.setattr(jobs, "SLOWEST", 0)
    monkeypatch.setattr(jobs, "SLOWEST_CALL_S", 1.0)
    plan = Plan(blocks=2, block_ms=5, warmup_ms=5, least_samples=4)
    slow = candidate("slow", made("any", 1), wayward, busy_ms=300)
    found = run_job(device, [slow], feed=FEED, plan=plan, progress=lambda done, message: None)
    timing = found.candidates["slow"]
    assert isinstance(timing, Timing) and {len(block) for block in timing.blocks_ns} == {2}


def test_a_child_killed_from_outside(device: Local, made: Make, wayward: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def kill(done: float, message: str) -> None:
        if pids.exists() and message.startswith("block 2"):
            os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)

    job = [candidate("victim", made("any", 1), wayward, pids=str(pids))]
    plan = Plan(blocks=3, block_ms=400, warmup_ms=5)
    found = run_job(device, job, feed=FEED, plan=plan, progress=kill).candidates["victim"]
    assert isinstance(found, Failed) and found.kind == "signal"
    assert found.message.startswith("its process was ended by SIGKILL")


def test_a_hostile_file_is_not_given_to_the_runtime(device: Local, made: Make, tmp_path: Path) -> None:
    path = made("broken", 1)
    path.write_bytes(path.read_bytes()[:-7])
    found = run(device, [candidate("broken", path)])["broken"]
    assert isinstance(found, Failed) and found.kind == "refused"
    assert "is refused: " in found.message


def test_an_input_that_the_job_does_not_feed(device: Local, made: Make) -> None:
    job = [candidate("it", made("any", 1))]
    result = run_job(device, job, feed={"z": FEED["x"]}, plan=SHORT, progress=lambda *_: None)
    assert result.candidates["it"] == Failed("load", "it wants the inputs ['x'], and the job feeds ['z']")


def test_a_file_changed_after_it_was_described(
    device: Local, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("any", 1)
    start = Local.start

    def tamper(self: Local, job: object) -> str:
        path.write_bytes(made("other", 2).read_bytes())
        return start(self, job)  # type: ignore[arg-type]

    monkeypatch.setattr(Local, "start", tamper)
    with pytest.raises(EnvironmentMissing, match=r"device local: candidate0/any.onnx has the digest"):
        run(device, [candidate("it", path)])


def test_one_measurement_at_a_time(
    device: Local, made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploycompress.devices.local.LOCK_WAIT_S", 0.5)
    lock = tmp_path / "jobs" / "deploycompress.lock"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(1, flush=True); input()",
            str(lock),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdin is not None
    holder.stdout.readline()
    try:
        for told, who in (
            ("", "another measurement"),
            ("process 7 of me", r"another .* \(process 7 of me\)"),
        ):
            lock.write_text(told)
            with pytest.raises(EnvironmentMissing, match=f"device local: {who} has held the device for 0 s"):
                run(device, [candidate("it", made("any", 1))])
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
    assert isinstance(run(device, [candidate("it", made("any", 1))])["it"], Timing)
    assert re.fullmatch(r"process \d+ of .+, since \d\d:\d\d:\d\d", lock.read_text())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two accounts")
@pytest.mark.parametrize("first", [0, 65534])
def test_two_accounts_queue_for_one_device(first: int) -> None:
    """Whoever of them made the file; in a folder as /tmp is, where nobody may take away what is another's."""

    def takes(user: int) -> int:
        """0 where a process of that account gets the lock, 1 where another has it."""
        child = os.fork()
        if child == 0:
            try:
                os.setgid(user)
                os.setuid(user)
                os.umask(0o077)
                fcntl.flock(open_lock(path), fcntl.LOCK_EX | fcntl.LOCK_NB)
                os._exit(0)
            except BlockingIOError:
                os._exit(1)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        path = f"{folder}/deploycompress.lock"
        assert takes(first) == takes(65534 - first) == 0
        with open_lock(path) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert takes(65534) == takes(0) == 1
        assert takes(65534) == takes(0) == 0


@pytest.mark.parametrize("fail", ["", "hang"])  # a call that hangs reads no pipe
def test_nothing_outlives_a_killed_controller(made: Make, wayward: str, tmp_path: Path, fail: str) -> None:
    pids, place = tmp_path / "pids", tmp_path / "jobs"
    place.mkdir()
    script = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        import numpy as np
        from deploycompress.devices.jobs import *
        job = [Candidate(str(i), Path({str(made("any", 1))!r}), {wayward!r}, options=dict(pids={str(pids)!r}, fail={fail!r})) for i in (1, 2)]
        run_job(open_device("local"), job, feed={{"x": np.ones(2)}}, plan=Plan(100, 500, 5), progress=lambda *_: None)
    """
    controller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env={**os.environ, "TMPDIR": str(place)}
    )
    started = 1 if fail else 2  # the second loads when the first has warmed up
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == started, 120)
    time.sleep(0.2)
    children = [int(pid) for pid in pids.read_text().split()]
    assert all(alive(pid) for pid in children)
    controller.kill()
    controller.wait()
    wait_until(lambda: not any(alive(pid) for pid in children), 30)
    wait_until(lambda: not list(place.glob("deploycompress-job-*")), 30)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_share_a_runtime_and_the_baseline() -> None:
    def of(runtime: str, *ids: str) -> list[Candidate]:
        return [Candidate(id, Path("x"), runtime) for id in ids]

    both = [*of("a", "1", "2", "3", "4", "5"), *of("b", "e", "reference"), *of("a", "base")]
    found = split(both, "base", {"a": "base", "b": "reference"})
    assert [[c.id for c in job] for job in found] == [
        ["base", "1", "2", "3", "4"],
        ["base", "5"],
        ["reference", "base", "e"],
    ]
    assert [[c.id for c in job] for job in split(of("a", "base"), "base", {})] == [["base"]]


def test_devices_by_name() -> None:
    assert open_device("local").facts()["name"] == "local"
    with pytest.raises(ConfigError, match="unknown device 'lokal'; known: local"):
        open_device("lokal")


@pytest.mark.parametrize(("block_ms", "told"), [(7.0, False), (320.0, True)])
def test_energy_by_a_counter_that_stands_still_is_told_of_long_blocks_alone(
    block_ms: float, told: bool
) -> None:
    row = Measurement(
        "it", "tensorrt", "local", "cuda", "fp16", 1, 1,
        Latency(1.0, None, None, 1.0, 9, 1.0), energy_mj=5.0, energy_of=("package-0", "gpu-0"),
    )  # fmt: skip
    found = jobs._without_smeared_energy(row, Plan(200, block_ms, 10.0))
    assert (found == row) if told else (found.energy_mj is None and found.notes[0].startswith(SMEARED))
    alone = replace(row, energy_of=("package-0",))
    assert jobs._without_smeared_energy(alone, Plan(200, block_ms, 10.0)) == alone


def test_what_gates_ask_for_is_beside_the_figures(device: Local, made: Make, tmp_path: Path) -> None:
    rows = measure(
        device,
        [candidate("base", made("base", 40)), candidate("small", made("small", 4))],
        baseline="base",
        feed=FEED,
        plan=Plan(blocks=8, block_ms=10, warmup_ms=10, least_samples=700),
        workdir=tmp_path,
        gated=True,
    )
    small = rows["small"]
    assert set(small.intervals) == {"p50", "p90", "p99", "mean"} and set(small.ratios) == {
        "p90",
        "p99",
        "mean",
    }
    for name, (low, high) in small.intervals.items():
        assert low <= getattr(small.latency_ms, name) <= high
    for of in small.ratios.values():
        assert 1.0 < of.low <= of.value <= of.high
    assert rows["base"].ratios == {} and rows["base"].intervals
    assert Measurement.from_json(json.loads(json.dumps(small.to_json()))) == small
