"""A program of the user's own on a device: asked line by line, over a real sshd; and what it may do wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from device_lab import Sshd

from deploycompress.config.device_file import read_devices
from deploycompress.devices.answers import answers
from deploycompress.devices.jobs import Candidate, measure, open_device
from deploycompress.devices.ssh import Ssh
from deploycompress.errors import DeployCompressError, EnvironmentMissing
from deploycompress.measure.plan import Plan
from deploycompress.user_code import NO_USER_CODE

FEED = {"x": np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)}
Make = Callable[[str, int], Path]


def measured(board: Sshd, program: Path, files: dict[str, Path], tmp_path: Path):
    device = Ssh("board", board.config(program=program))
    return measure(
        device,
        [Candidate(name, path, "program") for name, path in files.items()],
        baseline=next(iter(files)),
        feed=FEED,
        plan=Plan(blocks=6, block_ms=20, warmup_ms=20, least_samples=64),
        workdir=tmp_path,
    )


def test_it_is_sent_along_measured_and_gives_what_the_host_gives(
    board: Sshd, made: Make, program: Callable[..., Path], tmp_path: Path
) -> None:
    device = Ssh("board", board.config(program=program()))
    assert device.missing("program") is None
    (found,) = answers(device, Candidate("it", made("it", 3), "program"), [FEED])
    assert np.array_equal(found["y"], FEED["x"])
    rows = measured(board, program(), {"base": made("base", 400), "small": made("small", 40)}, tmp_path)
    base, small = rows["base"], rows["small"]
    assert small.speedup is not None and small.speedup.low > 2 and small.runtime == "program"
    assert base.latency_ms.samples >= 64 and base.latency_ms.p50 > 0.01
    assert base.peak_memory_bytes is not None and base.peak_memory_bytes > 20e6  # the program's


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('answer = {"error": "no kernel for MatMul"}', "the program says: no kernel for MatMul"),
        ("sys.exit(3)", 'the program ended with code 3 when it was asked to "load"'),
        ("print('hello')", "by b'hello.n': expected one JSON object in one line"),
        ('answer["ns"] = [0]', '"run" without "ns": expected 1 whole nanoseconds'),
        ("os.abort()", 'the program ended by SIGABRT when it was asked to "load"'),
        ('answer.pop("outputs", 0)', '"fetch" without "outputs"'),
    ],
)
def test_what_it_does_wrong_is_said_and_nothing_of_it_stays(
    board: Sshd, made: Make, program: Callable[..., Path], tmp_path: Path, wrong: str, message: str
) -> None:
    with pytest.raises(DeployCompressError, match=message):
        measured(board, program(wrong), {"one": made("one", 3)}, tmp_path)


def test_a_program_that_cannot_be_started(board: Sshd, made: Make, tmp_path: Path) -> None:
    foreign = tmp_path / "other-processor"
    foreign.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(EnvironmentMissing, match="the program does not start here: Exec format error"):
        measured(board, foreign, {"one": made("one", 3)}, tmp_path)


def test_a_device_without_one_says_where_to_name_it(board: Sshd) -> None:
    missing = Ssh("board", board.config()).missing("program")
    assert missing == "device board declares no program; add `program: ./FILE` to it in devices.yaml"
    here = open_device("local").missing("program")
    assert here is not None and "declares `program: ./FILE` in devices.yaml" in here


def test_its_file_is_looked_for_beside_devices_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "devices.yaml"
    place.write_text("board: {ssh: me@board, program: ./npu-bench}\n")
    _, problems = read_devices(place)
    assert len(problems) == 1 and "npu-bench" in str(problems[0])
    (tmp_path / "npu-bench").touch()
    devices, problems = read_devices(place)
    assert not problems and devices["board"].program == tmp_path / "npu-bench"
    monkeypatch.setenv(NO_USER_CODE, "1")
    _, problems = read_devices(place)
    assert "--no-user-code refuses" in str(problems[0])
