"""Android devices, behind a scripted ``adb``; with a real phone where one is named."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_lab import python_with

from deploycompress.artifact import digest_file
from deploycompress.config.devices import AdbConfig
from deploycompress.devices import link
from deploycompress.devices.adb import Adb
from deploycompress.devices.jobs import Candidate, run_job
from deploycompress.devices.results import Timing
from deploycompress.errors import EnvironmentMissing
from deploycompress.measure.plan import Plan

FEED = {"x": np.ones((2, 64), np.float32)}
SHORT = Plan(blocks=4, block_ms=10, warmup_ms=10, least_samples=8, again=0.0)
Make = Callable[[str, int], Path]

# As the real one: -s SERIAL shell -T COMMAND runs it in the device's shell; what fails is told on standard error.
# Each line of ``faults`` is taken by one call: a message instead of the command, or "cut" in the middle of its answer.
ADB = """#!{python}
import os, subprocess, sys
serial, verb, flag, command = sys.argv[2:]
assert sys.argv[1] == "-s" and (verb, flag) == ("shell", "-T"), sys.argv
faults = open({faults!r}).read().splitlines()
open({faults!r}, "w").write("".join(line + "\\n" for line in faults[1:]))
fault = faults[0] if faults else ""
if serial != "R58M12":
    fault = f"error: device '{{serial}}' not found"
if fault and fault != "cut":
    sys.stderr.write(fault + "\\n")
    sys.exit(1)
done = subprocess.run(["sh", "-c", command], env={{"PATH": "/usr/bin:/bin"}}, stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout[: len(done.stdout) // 2] if fault else done.stdout)
if fault:
    sys.stderr.write("error: closed\\n")
    sys.exit(1)
sys.exit(done.returncode)
"""


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the next calls of ``adb`` come to, a line each."""
    program, faults = tmp_path / "bin" / "adb", tmp_path / "faults"
    program.parent.mkdir()
    faults.touch()
    program.write_text(ADB.format(python=sys.executable, faults=str(faults)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(link, "PAUSES_S", (0.05, 0.2))
    return faults


@pytest.fixture
def phone(faults: Path, tmp_path: Path) -> Callable[..., Adb]:
    """(more of devices.yaml) -> a device whose files lie in the test's folder; phones have no python3 on their path."""
    python = python_with(tmp_path / "bin" / "termux python", sys.executable)

    def make(serial: str = "R58M12", **more: object) -> Adb:
        given = {"python": python, "folder": str(tmp_path / "on the phone"), **more}
        return Adb("phone", AdbConfig.model_validate({"adb": serial, **given}))

    return make


def run(device: Adb, path: Path) -> Timing:
    candidate = Candidate("it", path, "onnxruntime")
    found = run_job(device, [candidate], feed=FEED, plan=SHORT, progress=lambda *_: None).candidates["it"]
    assert isinstance(found, Timing), found
    return found


def test_measures_there(phone: Callable[..., Adb], made: Make, tmp_path: Path) -> None:
    device = phone()
    assert device.facts()["name"] == "phone"
    assert device.missing("onnxruntime") is None
    run(device, made("some", 7))
    assert list((tmp_path / "on the phone" / "jobs").iterdir()) == []


def test_a_cable_that_is_pulled_now_and_then(phone: Callable[..., Adb], faults: Path, made: Make) -> None:
    device = phone()
    device.facts()
    offline, gone = "error: device offline", "error: device 'R58M12' not found"
    faults.write_text(
        "\n".join([offline, "", "cut", "", gone, gone, "", "cut", "", "cut", "", "error: closed", ""])
    )
    run(device, made("some", 7))
    assert faults.read_text() == ""


def test_a_piece_whose_answer_was_lost_is_not_written_twice(
    phone: Callable[..., Adb], faults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the file would be damaged, and have to be sent again as a whole."""
    offsets: list[int] = []
    ask = link.Link.ask

    def noting(self: link.Link, do: str, *data: bytes, **more: Any) -> link.Answer:
        offsets.extend([more["offset"]] if do == "put" else [])
        return ask(self, do, *data, **more)

    monkeypatch.setattr(link.Link, "ask", noting)
    large, device = tmp_path / "large", phone()
    large.write_bytes(os.urandom(300_000))
    device.facts()
    faults.write_text(
        "\n".join(["", "cut", "", "cut", "", "cut", ""])
    )  # whether it is there, and then pieces
    device.push({digest_file(large): large})
    assert (tmp_path / "on the phone" / "blobs" / digest_file(large)).read_bytes() == large.read_bytes()
    assert faults.read_text() == ""
    assert offsets[0] == 0 and offsets == sorted(set(offsets))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "error: device unauthorized.",
            "it has not allowed this computer; unlock it and confirm the question",
        ),
        (
            "error: insufficient permissions for device: user in plugdev group; no permissions",
            "udev rules of adb",
        ),
        ("error: more than one device with serial R58M12", "several devices have this serial"),
    ],
)
def test_what_does_not_pass_by_waiting(phone: Callable[..., Adb], faults: Path, said: str, told: str) -> None:
    faults.write_text(said + "\n")
    with pytest.raises(EnvironmentMissing, match=f"device phone: .*{told}"):
        phone().facts()


def test_a_phone_that_is_not_there(phone: Callable[..., Adb]) -> None:
    with pytest.raises(
        EnvironmentMissing, match=r"there is no connection to X9 \(adb says: error: device 'X9' not"
    ):
        phone("X9", patience="1 s").facts()


def test_no_python_on_the_phone(phone: Callable[..., Adb]) -> None:
    with pytest.raises(EnvironmentMissing, match="device phone: there is no python9 there"):
        phone(python="python9").facts()


def test_no_adb_here(phone: Callable[..., Adb], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        EnvironmentMissing, match="there is no adb on this machine; install Android's platform tools"
    ):
        phone().facts()


@pytest.mark.needs_android
def test_a_real_phone(made: Make) -> None:
    serial, python = os.environ.get("DEPLOYCOMPRESS_ANDROID"), os.environ.get("DEPLOYCOMPRESS_ANDROID_PYTHON")
    if not serial or not python:
        pytest.skip(
            "no phone: DEPLOYCOMPRESS_ANDROID is not a serial, or DEPLOYCOMPRESS_ANDROID_PYTHON no path on it"
        )
    device = Adb("phone", AdbConfig(adb=serial, python=python))
    assert device.missing("onnxruntime") is None
    run(device, made("some", 7))
