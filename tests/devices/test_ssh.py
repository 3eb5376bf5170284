"""A device behind a real sshd: measuring on it, and one sentence for each thing that is wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from device_lab import FaultyLink, Sshd, python_with, script

from deploycompress.artifact import digest_file
from deploycompress.devices.answers import answers
from deploycompress.devices.building import build_on
from deploycompress.devices.jobs import Candidate, measure, run_job
from deploycompress.devices.link import PROGRAM
from deploycompress.devices.results import Timing
from deploycompress.devices.ssh import OpenSsh, Ssh
from deploycompress.errors import EnvironmentMissing, StageFailed
from deploycompress.measure.environment import machine
from deploycompress.measure.plan import Plan

FEED = {"x": np.arange(128, dtype=np.float32).reshape(2, 64)}
SHORT = Plan(blocks=4, block_ms=10, warmup_ms=10, least_samples=8, again=0.0)
Make = Callable[[str, int], Path]


def run(device: Ssh, path: Path, runtime: str = "onnxruntime", **options: object) -> Timing:
    candidate = Candidate("it", path, runtime, options=options)
    found = run_job(device, [candidate], feed=FEED, plan=SHORT, progress=lambda *_: None).candidates["it"]
    assert isinstance(found, Timing), found
    return found


def test_measures_there_as_it_does_here(board: Sshd, made: Make, tmp_path: Path) -> None:
    device = Ssh("board", board.config())
    facts = device.facts()
    assert facts["name"] == "board" and facts["python"].startswith("3.") and facts["emulated"] is False
    assert {key: facts[key] for key in machine()} == machine()
    assert facts["libraries"]["onnxruntime"]
    assert device.missing("onnxruntime") is None
    found = measure(
        device,
        [
            Candidate("base", made("base", 400), "onnxruntime"),
            Candidate("small", made("small", 40), "onnxruntime"),
        ],
        baseline="base",
        feed=FEED,
        plan=Plan(blocks=8, block_ms=20, warmup_ms=20, least_samples=64),
        workdir=tmp_path,
    )
    assert found["base"].device == "board" and (tmp_path / str(found["base"].samples)).is_file()
    speedup = found["small"].speedup
    assert speedup is not None and speedup.low > 2
    got = list(answers(device, Candidate("it", made("it", 3), "onnxruntime"), [FEED, {"x": -FEED["x"]}]))
    assert np.array_equal(got[0]["y"], FEED["x"]) and np.array_equal(got[1]["y"], -FEED["x"])


def test_what_is_there_is_not_sent_again(board: Sshd, made: Make, tmp_path: Path) -> None:
    path, blobs = made("some", 7), tmp_path / "there" / "blobs"
    device = Ssh("board", board.config(folder=str(tmp_path / "there")))
    run(device, path)
    before = {p.name: p.stat().st_ino for p in blobs.iterdir()}
    assert len(before) == 3  # the runner, the model and the input
    run(device, path)
    assert {p.name: p.stat().st_ino for p in blobs.iterdir()} == before


def test_a_large_file_goes_in_pieces_and_arrives_whole(board: Sshd, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(3_000_000))
    device = Ssh("board", board.config())
    digest = digest_file(large)
    device.push({digest: large})
    there = board.home / ".cache" / "deploycompress" / "blobs" / digest
    assert there.read_bytes() == large.read_bytes()
    with pytest.raises(
        EnvironmentMissing, match="does not arrive as it was sent, 3 times from its beginning"
    ):
        device.push({"0" * 64: large})


@pytest.mark.parametrize("name", ['it\'s a "folder"', "$HOME `date` ; exit", "ordner für müll\\"])
def test_folders_with_anything_in_their_name(board: Sshd, made: Make, tmp_path: Path, name: str) -> None:
    device = Ssh("board", board.config(folder=f"{tmp_path}/{name}"))
    run(device, made("some", 7))
    assert len(list((tmp_path / name / "blobs").iterdir())) == 3
    assert list((tmp_path / name / "jobs").iterdir()) == []


def test_a_profile_that_prints(board: Sshd, made: Make) -> None:
    profile = board.home / ".bashrc"
    profile.write_text("echo welcome; echo '{\"bytes\": 0}'; echo careful >&2\n")
    config = board.config()
    try:
        done = subprocess.run(
            ["ssh", *OpenSsh("board", config).options(), "-p", str(config.port), config.ssh, "true"],
            capture_output=True,
        )
        if b"welcome" not in done.stdout:
            pytest.skip("this user's shell reads no .bashrc")
        run(Ssh("board", config), made("some", 7))
    finally:
        profile.unlink()


def test_through_a_host_in_between(board: Sshd, made: Make) -> None:
    run(Ssh("board", board.config(jump=f"{board.user}@127.0.0.1:{board.port}")), made("some", 7))
    with pytest.raises(EnvironmentMissing, match=r"device board: .*known_hosts"):  # its key is checked too
        config = board.config(jump=f"{board.user}@localhost:{board.port}")
        Ssh("board", config).facts()


# ---------------------------------------------------------------- what is wrong, in one sentence


def refusal(config: object) -> str:
    with pytest.raises(EnvironmentMissing) as caught:
        Ssh("board", config).facts()  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_another_host_key(board: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{board.port} {(board.folder / 'other_key.pub').read_text()}")
    told = refusal(board.config().model_copy(update={"known_hosts": known}))
    assert told.startswith(
        f"device board: the host key of {board.user}@127.0.0.1 is not the one in known_hosts"
    )
    assert "ssh-keygen -R" in told


def test_an_unknown_host(board: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.touch()
    told = refusal(board.config().model_copy(update={"known_hosts": known}))
    assert "is not in known_hosts; connect once by hand" in told
    assert known.read_text() == ""  # and we did not put it there


def test_a_refused_key(board: Sshd) -> None:
    told = refusal(board.config(identity=board.folder / "other_key"))
    assert "refuses our keys; add a public key to its authorized_keys" in told and "Permission denied" in told


def test_nobody_there(board: Sshd, impatient: None) -> None:
    link = FaultyLink(board.port, down=True)
    told = refusal(board.config(link.port, patience="1 s"))
    assert "there is no connection to" in told and "for 1 s; look whether it is switched on" in told
    link.close()
    told = refusal(board.config(link.port, patience="1 s"))
    assert "Connection refused" in told


def test_a_name_without_an_address(board: Sshd) -> None:
    told = refusal(board.config(ssh="me@no-such-host.invalid"))
    assert "me@no-such-host.invalid has no address; look at `ssh:` in devices.yaml" in told


def test_no_python(board: Sshd, tmp_path: Path) -> None:
    assert "there is no python9 there (" in refusal(board.config(python="python9"))
    broken = script(tmp_path / "python broken", "echo illegal >&2", "exit 3")
    told = refusal(board.config(python=broken))
    assert f"{broken} ended with code 3 and gave no answer (illegal); try it there by hand" in told


def test_an_old_python(board: Sshd, tmp_path: Path) -> None:
    program = PROGRAM.replace("(3, 8)", "(99, 8)")  # this Python is old, by that
    said = subprocess.run(
        [sys.executable, "-I", "-c", program], stdin=subprocess.DEVNULL, capture_output=True
    )
    old = script(tmp_path / "python", f"echo '{said.stderr.decode().strip()}' >&2", f"exit {said.returncode}")
    told = refusal(board.config(python=old))
    version = ".".join(map(str, sys.version_info[:2]))
    assert f"{old} there is Python {version}, and 3.8 is needed; name a newer one by `python:`" in told


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Python with nothing installed; gives its site-packages."""
    venv.create(tmp_path / "bare", with_pip=False)
    return next((tmp_path / "bare" / "lib").glob("python3*/site-packages"))


def test_no_numpy_no_onnxruntime_and_one_that_crashes(board: Sshd, bare: Path, tmp_path: Path) -> None:
    config = board.config(python=str(tmp_path / "bare" / "bin" / "python"))
    told = Ssh("board", config).missing("onnxruntime")
    assert told is not None and "onnxruntime with numpy cannot be imported by" in told
    assert told.endswith("ModuleNotFoundError: No module named 'onnxruntime'")
    packages = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (packages / name).exists():
            (bare / name).symlink_to(packages / name)
    (bare / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    told = Ssh("board", config).missing("onnxruntime")
    assert told is not None
    assert "onnxruntime with numpy crashes on import (SIGSEGV); install another version there" in told


def test_a_full_disk(board: Sshd, made: Make, tmp_path: Path) -> None:
    small = python_with(tmp_path / "python", sys.executable, "ulimit -f 16")
    with pytest.raises(
        EnvironmentMissing, match="the device is full; free some space there, or name another `fol"
    ):
        run(Ssh("board", board.config(python=small, folder=str(tmp_path / "full"))), made("some", 7))


def test_a_folder_that_cannot_be_written(board: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = refusal(board.config(folder=str(tmp_path / "file" / "below")))
    assert "the device does not let us write there; name another `folder:`: " in told


# ---------------------------------------------------------------- candidates that fail there


def test_a_crash_there_is_a_failed_candidate(board: Sshd, made: Make, wayward: str, tmp_path: Path) -> None:
    with pytest.raises(
        StageFailed, match=r"it on board in .* was not measured: its process was ended by SIGSEGV"
    ):
        measure(
            Ssh("board", board.config()),
            [Candidate("it", made("any", 1), wayward, options={"fail": "crash"})],
            baseline=None,
            feed=FEED,
            plan=Plan(blocks=2, block_ms=5, warmup_ms=5),
            workdir=tmp_path,
        )


def test_an_engine_is_built_there(board: Sshd, made: Make, wayward: str, tmp_path: Path) -> None:
    there = Ssh("board", board.config(folder=str(tmp_path / "there")))
    place = tmp_path / "engine.onnx"
    built = build_on(there, Candidate("engine", made("one", 40), "onnxruntime"), place)
    assert built.told == {"provider": "cpu", "options": {"graph_level": "off"}} and built.inspected is None
    loaded = Candidate("engine", place, "onnxruntime", options=dict(built.told["options"]))
    (outputs,) = answers(there, loaded, [FEED])
    assert np.isfinite(outputs["y"]).all()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(made("two", 2).read_bytes()[:-40])
    with pytest.raises(
        (StageFailed, EnvironmentMissing), match="no engine was built on board by onnxruntime: "
    ):
        build_on(there, Candidate("engine", broken, "onnxruntime"), tmp_path / "none")
    with pytest.raises(StageFailed, match=r"by .*Wayward: this runtime builds no engines"):
        build_on(there, Candidate("engine", made("one", 1), wayward), tmp_path / "none")
    assert not (tmp_path / "none").exists() and list((tmp_path / "there" / "jobs").iterdir()) == []


def test_a_file_that_was_damaged_there_is_sent_again(board: Sshd, made: Make, tmp_path: Path) -> None:
    device, path = Ssh("board", board.config(folder=str(tmp_path / "there"))), made("some", 7)
    run(device, path)
    for blob in (tmp_path / "there" / "blobs").iterdir():
        if blob.stat().st_size == path.stat().st_size:
            blob.write_bytes(blob.read_bytes()[:-1] + b"?")
            damaged = blob
    run(device, path)
    assert damaged.read_bytes() == path.read_bytes()
