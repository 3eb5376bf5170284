"""Whole runs whose target is a device behind a real sshd."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from device_lab import Sshd, script, wait_until

from deploycompress.config.device_file import dump_devices
from deploycompress.config.devices import DeviceConfig

RUN = [sys.executable, "-c", "from deploycompress.cli import main; main()", "run"]


@pytest.fixture
def project(tiny: Path) -> Path:
    """A pipeline that trains, exports, quantizes and measures on ``board``."""
    text = tiny.read_text()
    steps = text[text.index("  - prune") : text.index("  - export")]
    tiny.write_text(text.replace(steps, "").replace("{threads: 1}", "{threads: 1, device: board}"))
    return tiny


@pytest.fixture(autouse=True)
def own_lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For what is measured here; below a short path, since sockets lie there too."""
    with tempfile.TemporaryDirectory(prefix="runs-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


def declare(project: Path, device: DeviceConfig) -> None:
    (project.parent / "devices.yaml").write_text(dump_devices({"board": device}))


def start(project: Path, out: Path) -> subprocess.Popen[str]:
    command = [*RUN, str(project), "--out", str(out), "--no-rehearsal"]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(project: Path, out: Path) -> tuple[int, str]:
    process = start(project, out)
    said, errors = process.communicate(timeout=300)
    return process.returncode, said + errors


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


@pytest.mark.slow
def test_a_killed_run_takes_up_its_measurement_again(board: Sshd, project: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "runs" / "killed", tmp_path / "there"
    declare(project, board.config(folder=str(there)))
    process = start(project, out)
    wait_until(lambda: any("measure" in text for text in _jobs(there).values()), 200)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (job,) = (name for name, text in _jobs(there).items() if "measure" in text)
    result = there / "jobs" / job / "result.json"
    wait_until(result.exists, 120)  # it goes on without a controller
    entries = json.loads(result.read_text())["candidates"].values()
    samples = [sorted(block["samples_ns"] for block in entry["blocks"]) for entry in entries]
    code, said = finished(project, out)
    assert code == 0, said
    report = report_of(out)
    assert {row["device"] for row in report["measurements"]} == {"board"}
    raw = [json.loads((out / row["samples"]).read_text()) for row in report["measurements"]]
    kept = [sorted(of["blocks"] + of["set_aside"]) for of in raw]
    assert len(samples) == len(kept) + 1  # the baseline ran twice
    assert all(each in samples for each in kept)  # what was measured while nobody asked
    assert report["environment"]["devices"]["board"]["python"].startswith("3.")
    assert list((there / "jobs").iterdir()) == []


def _jobs(there: Path) -> dict[str, str]:
    """What each job on the device does, by its folder's name."""
    found = {}
    for place in there.glob("jobs/*/job.json"):
        try:
            found[place.parent.name] = json.loads(place.read_text())["do"]
        except (OSError, ValueError):  # it is being written, or taken away
            continue
    return found


def test_a_device_that_is_not_ready_ends_the_run_before_it_begins(
    board: Sshd, project: Path, tmp_path: Path
) -> None:
    declare(project, board.config(python=script(tmp_path / "python", "exit 127")))
    code, said = finished(project, tmp_path / "runs" / "none")
    assert code == 3
    assert "error: device board: there is no " in said and "Traceback" not in said
    assert not (tmp_path / "runs" / "none" / "00-model").exists()


@pytest.mark.nightly
def test_an_emulated_device_passes_no_latency_gate_and_builds_its_own_engine(
    board: Sshd, project: Path, tmp_path: Path
) -> None:
    declare(project, board.config(emulated=True))
    engine = "  - build_engine: {runtime: onnxruntime, from: export}\n  - benchmark\n"
    project.write_text(project.read_text().replace("  - benchmark\n", engine) + "  latency_p50: {max: 1 h}\n")
    code, said = finished(project, tmp_path / "runs" / "emulated")
    assert code == 5, said
    report = report_of(tmp_path / "runs" / "emulated")
    (gate,) = (g for g in report["gates"] if g["metric"] == "latency_p50")
    assert gate["verdict"] == "inconclusive" and "the device is emulated" in gate["message"]
    assert "on an emulated device, whose times say nothing about a real one" in said
    for row in report["measurements"]:
        assert "the device is emulated, so its times say nothing about a real one" in row["notes"]
    (built,) = (a for a in report["artifacts"] if a["kind"] == "engine")
    assert built["details"]["device"] == "board" and built["details"]["runtime"] == "onnxruntime"
    rows = {row["artifact"]: row["metrics"] for row in report["measurements"]}
    assert rows["build_engine"] == rows["export"] and rows["export"]["accuracy"] > 0  # judged there, and here


def test_a_program_of_the_users_measures_a_whole_run(board: Sshd, project: Path, program) -> None:
    """And accuracy is read there as well, since nothing here runs what it runs."""
    text = project.read_text().replace("device: board}", "device: board, runtime: program}")
    project.write_text(text)
    asked = project.parent / "asked"
    declare(project, board.config(program=program(f"open({str(asked)!r}, 'a').write(asked['do'] + ' ')")))
    out = project.parent / "run"
    code, said = finished(project, out)
    assert code == 0, said
    # Five times to open what is timed and to compare it, the rest to answer the test split.
    assert asked.read_text().split().count("fetch") > 10
    assert "checking 1-quantize.board.program.cpu.t1.b1 on board" in (out / "log.txt").read_text()
    rows = {row["artifact"]: row for row in report_of(out)["measurements"]}
    assert {row["runtime"] for row in rows.values()} == {"program"}
    assert rows["quantize"]["speedup"] is not None and rows["quantize"]["metrics"]["accuracy"] > 0.3
