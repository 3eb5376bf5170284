"""Links that fail, controllers that are killed, devices that are busy: no measurement is lost, and none is invented."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from device_lab import Fault, FaultyLink, Sshd, fail_at, wait_until

from deploycompress.devices import jobs
from deploycompress.devices.jobs import Candidate, run_job
from deploycompress.devices.results import Result, Timing
from deploycompress.devices.ssh import Ssh
from deploycompress.errors import EnvironmentMissing
from deploycompress.measure.plan import Plan

FEED = {"x": np.ones((2, 64), np.float32)}
SHORT = Plan(blocks=4, block_ms=20, warmup_ms=10, least_samples=4, again=0.0)
LONG = Plan(blocks=10, block_ms=400, warmup_ms=10, again=0.0)  # four seconds and what loading takes
BUSY_MS = 2.0
Make = Callable[[str, int], Path]


@pytest.fixture
def measured(made: Make, wayward: str, tmp_path: Path) -> Callable[..., Result]:
    """(device, plan, progress) -> the result of calls that take a known time; ``pids`` says how often it was run."""
    path = made("any", 1)

    def run(device: Ssh, plan: Plan = SHORT, progress: jobs.Progress = lambda *_: None) -> Result:
        options = {"busy_ms": BUSY_MS, "pids": str(tmp_path / "pids")}
        job = [Candidate("it", path, wayward, options=options)]
        return run_job(device, job, feed=FEED, plan=plan, progress=progress)

    return run


def timing(result: Result, blocks: int) -> Timing:
    """The figure must be the right one, wherever the link failed."""
    found = result.candidates["it"]
    assert isinstance(found, Timing), found
    assert len(found.blocks_ns + found.set_aside_ns) == blocks
    assert BUSY_MS <= min(min(block) for block in found.blocks_ns) / 1e6 < BUSY_MS * 1.2
    return found


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "pids").read_text().split())


# Bytes into the connection: before the banner, in the exchange of keys, at the login, in the program that we send.
FAULTS = [
    ("facts", Fault("cut", 0, upward=False)),
    ("facts", Fault("stall", 0, upward=False)),
    ("facts", Fault("reset", 1500)),
    ("have", Fault("cut", 2600)),
    ("put", Fault("reset", 9000)),
    ("put", Fault("stall", 9000)),
    ("put", Fault("flip", 9000)),
    ("put", Fault("slow", 4000)),
    ("start", Fault("refuse")),
    ("start", Fault("cut", 3460, upward=False)),  # it was done, and the answer is lost
    ("poll", Fault("stall", 6000)),
    ("poll", Fault("reset", 9000)),
    ("read", Fault("cut", 3500, upward=False)),
    ("read", Fault("flip", 3500, upward=False)),
    ("stop", Fault("stall", 0)),
    ("stop", Fault("cut", 9000)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "fault"), FAULTS, ids=[f"{p}-{f.kind}-{f.after_bytes}" for p, f in FAULTS])
def test_a_fault_in_any_phase(
    board: Sshd,
    faulty: FaultyLink,
    impatient: None,
    measured: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    fault: Fault,
) -> None:
    fail_at(phase, fault, faulty, monkeypatch.setattr)
    device = Ssh("board", board.config(faulty.port, folder=str(tmp_path / "there")))
    device.facts()
    timing(measured(device), 4)
    assert faulty.struck == set(faulty.faults)
    assert runs(tmp_path) == 1
    assert list((tmp_path / "there" / "jobs").iterdir()) == []


def test_a_link_that_is_away_for_the_whole_measurement(
    board: Sshd, faulty: FaultyLink, impatient: None, measured: Callable[..., Result], tmp_path: Path
) -> None:
    device = Ssh("board", board.config(faulty.port))
    there = board.home / ".cache" / "deploycompress" / "jobs"

    def cut(done: float, message: str) -> None:
        if message.startswith("block") and not faulty.down:
            faulty.down = True
            threading.Thread(target=come_back, daemon=True).start()

    def come_back() -> None:
        wait_until(lambda: bool(list(there.glob("*/result.json"))), 30)
        faulty.down = False

    timing(measured(device, LONG, cut), 10)
    assert runs(tmp_path) == 1 and not faulty.down


def test_a_link_that_stays_away(
    board: Sshd,
    faulty: FaultyLink,
    impatient: None,
    measured: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clean error after the time that was given; the job ends by itself, and its files are taken away later."""
    monkeypatch.setattr("deploycompress.devices.remote.ANSWER_S", 1.0)
    device = Ssh("board", board.config(faulty.port, patience="1 s"))

    def cut(done: float, message: str) -> None:
        faulty.down = faulty.down or message.startswith("block")

    with pytest.raises(
        EnvironmentMissing, match=r"device board: there is no connection to .* and so for 1 s; look"
    ) as e:
        measured(device, Plan(blocks=100, block_ms=400, warmup_ms=10), cut)
    assert e.value.exit_code == 3
    assert board.processes()  # still there,
    wait_until(lambda: not board.processes(), 60)  # and gone when nobody has asked for a while
    (left,) = (board.home / ".cache" / "deploycompress" / "jobs").iterdir()
    old = time.time() - 2 * 24 * 3600
    os.utime(left / "heartbeat", (old, old))
    timing(measured(Ssh("board", board.config())), 4)
    assert not left.exists()


def test_a_stopped_run_leaves_nothing(board: Sshd, measured: Callable[..., Result]) -> None:
    def stop(done: float, message: str) -> None:
        if message.startswith("block"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(Ssh("board", board.config()), LONG, stop)
    assert board.processes() == []


CONTROLLER = """
    import sys; sys.path.insert(0, {folder!r})
    import numpy as np
    from pathlib import Path
    from deploycompress.config.devices import SshConfig
    from deploycompress.devices.jobs import Candidate, Plan, run_job
    from deploycompress.devices.ssh import Ssh
    device = Ssh("board", SshConfig.model_validate_json({config!r}), {controller!r})
    options = {{"busy_ms": 2.0, "pids": {pids!r}}}
    job = [Candidate("it", Path({path!r}), {runtime!r}, options=options)]
    run_job(device, job, feed={{"x": np.ones((2, 64), np.float32)}}, plan=Plan(10, 400, 10, again=0.0), progress=lambda *_: None)
"""


@pytest.mark.parametrize("finished", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_killed_controller_finds_its_job_again(
    board: Sshd,
    made: Make,
    wayward: str,
    measured: Callable[..., Result],
    tmp_path: Path,
    finished: bool,
) -> None:
    config, pids = board.config(folder=str(tmp_path / "there")), tmp_path / "pids"
    code = CONTROLLER.format(
        folder=str(tmp_path),
        config=config.model_dump_json(),
        controller="run 1",
        pids=str(pids),
        path=str(made("any", 1)),
        runtime=wayward,
    )
    controller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    jobs_there = tmp_path / "there" / "jobs"
    wait_until(pids.exists, 60)
    controller.send_signal(signal.SIGKILL)
    controller.wait()
    result = next(jobs_there.iterdir()) / "result.json"
    if finished:
        wait_until(result.exists, 60)
        samples = json.loads(result.read_text())["candidates"]["it"]["blocks"]
    found = timing(measured(Ssh("board", config, "run 1"), LONG), 10)
    assert runs(tmp_path) == 1
    if finished:
        assert sorted(map(list, found.blocks_ns + found.set_aside_ns)) == sorted(
            block["samples_ns"] for block in samples
        )
    assert list(jobs_there.iterdir()) == []
    timing(measured(Ssh("board", config, "run 1"), LONG), 10)  # it was collected, so this is a new one
    assert runs(tmp_path) == 2


def test_another_run_does_not_take_what_it_did_not_measure(
    board: Sshd, measured: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = board.config(folder=str(tmp_path / "there"))
    monkeypatch.setattr(Ssh, "stop", lambda self, id: None)  # as a controller that was killed
    measured(Ssh("board", config, "run 1"))
    measured(Ssh("board", config, "run 2"))
    assert runs(tmp_path) == 2
    mine = Ssh("board", config, "run 1")
    measured(mine)
    assert runs(tmp_path) == 2  # its own
    measured(mine)
    assert runs(tmp_path) == 3  # asked for twice is measured twice


def test_two_clients_queue(board: Sshd, measured: Callable[..., Result], tmp_path: Path) -> None:
    told: dict[str, list[str]] = {"first": [], "second": []}
    found: dict[str, Result] = {}

    def client(name: str) -> None:
        device = Ssh("board", board.config())
        found[name] = measured(device, LONG, lambda done, message: told[name].append(message))

    threads = [threading.Thread(target=client, args=(name,)) for name in told]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    for result in found.values():
        timing(result, 10)
    waiting = [
        any("waiting: another measurement (process " in message for message in told[name]) for name in told
    ]
    assert sorted(waiting) == [False, True]


def test_a_busy_device(
    board: Sshd, measured: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever measures there, whatever folder that one keeps its files in."""
    monkeypatch.setattr("deploycompress.devices.remote.LOCK_WAIT_S", 0.5)
    with (board.folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            EnvironmentMissing, match="device board: another measurement has held the device for"
        ):
            measured(Ssh("board", board.config(folder=str(tmp_path / "there"))))


# ---------------------------------------------------------------- devices that lie


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace('"load_ms": ', '"load_ms": NaN, "was": '), "its result is not valid at"),
        (lambda text: text.replace('"runner": "', '"runner": "0'), "other digests than what was sent"),
        (lambda text: text[:-20], "its result is not JSON"),
        (lambda text: "[1]", "its result is no JSON object"),
        (lambda text: '{"a":' * 100_000, "its result is not JSON"),
        (lambda text: None, "the runner ended and left no result"),
    ],
)
def test_a_result_that_is_not_to_be_believed(
    board: Sshd, made: Make, wayward: str, tmp_path: Path, change: Callable[[str], str | None], told: str
) -> None:
    device = Ssh("board", board.config(folder=str(tmp_path / "there")))
    candidates, pull = [Candidate("it", made("any", 1), wayward)], device.pull

    def lying(id: str) -> object:
        place = tmp_path / "there" / "jobs" / id / "result.json"
        text = change(place.read_text())
        place.unlink() if text is None else place.write_text(text)
        return pull(id)

    device.pull = lying  # type: ignore[method-assign,assignment]
    with pytest.raises(EnvironmentMissing, match=f"device board: .*{told}"):
        run_job(device, candidates, feed=FEED, plan=SHORT, progress=lambda *_: None)


def test_a_runner_that_is_killed_there(board: Sshd, measured: Callable[..., Result]) -> None:
    def kill(done: float, message: str) -> None:
        for folder in (board.home / ".cache" / "deploycompress" / "jobs").iterdir():
            if message.startswith("block"):
                with contextlib.suppress(ProcessLookupError):  # it is told once more after it was killed
                    os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)

    with pytest.raises(
        EnvironmentMissing, match="the runner ended and left no result; look whether the device was"
    ):
        measured(Ssh("board", board.config()), LONG, kill)
