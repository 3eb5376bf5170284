"""A device that answers to do harm: what it sends is bounded, and so is the time that it can take."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploycompress.artifact import digest_file
from deploycompress.config.devices import SshConfig
from deploycompress.devices import link, pipes, remote, transfer
from deploycompress.devices.answers import answers
from deploycompress.devices.jobs import Candidate
from deploycompress.devices.ssh import Ssh
from deploycompress.errors import EnvironmentMissing

# In the place of ``ssh``: reads a request as our agent does, and answers what the test says.
SSH = """#!{python}
import json, sys, time
from pathlib import Path
stream = sys.stdin.buffer
stream.read(int(stream.readline()))
request = json.loads(stream.readline())
data = stream.read(request["bytes"])
mark = request["mark"].encode()

def answer(head, found=b""):
    if isinstance(head, dict):
        head = json.dumps({{**head, "bytes": len(found)}}).encode()
    sys.stdout.buffer.write(b"\\n%s %d\\n%s%s\\n%s\\n" % (mark, len(head), head, found, mark))

FACTS = dict(architecture="a", cpu="c", flags=[], cores=1, cpu_quota=None, memory_bytes=1, governor=None, virtual=False,
             emulated=False, python="3.9", libraries={{}})
do = request["do"]
with open({calls!r}, "a") as calls:
    calls.write(do + "\\n")
{says}
"""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Ssh]:
    """(what its agent does, in Python) -> the device."""

    def make(says: str) -> Ssh:
        program = tmp_path / "bin" / "ssh"
        program.parent.mkdir()
        program.write_text(SSH.format(python=sys.executable, calls=str(tmp_path / "calls"), says=says))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return Ssh("board", SshConfig(ssh="board", patience="1 s"))

    return make


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_is_cut(device: Callable[[str], Ssh], stream: str) -> None:
    flood = f"while True: sys.{stream}.buffer.write(bytes(1 << 20))"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EnvironmentMissing, match="device board: it answered with more than was asked for"):
        device(flood).facts()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_head_that_is_nested_without_end(device: Callable[[str], Ssh]) -> None:
    with pytest.raises(EnvironmentMissing, match="device board"):
        device("answer(b'[' * 500_000)").facts()


def test_a_number_without_end(device: Callable[[str], Ssh]) -> None:
    with pytest.raises(EnvironmentMissing, match=r"is not valid at facts\.memory_bytes"):
        device("FACTS['memory_bytes'] = 1 << 70; answer(dict(facts=FACTS))").facts()


def test_a_job_that_is_never_over(
    device: Callable[[str], Ssh], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so itself, and would for ever."""
    for name in ("LOCK_WAIT_S", "LAST_RESORT_S", "ANSWER_S"):
        monkeypatch.setattr(remote, name, 0.2)
    says = """
if do == "poll":
    time.sleep(0.1)
    answer(dict(state="running", done=0.5, message="soon"))
else:
    answer(dict(facts=FACTS, absent=[], attached=False))
"""
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    feeds = iter([{"x": np.ones((1, 2), np.float32)}])
    with pytest.raises(EnvironmentMissing, match="its job is not over, long after its time limit"):
        list(answers(device(says), Candidate("it", model, "onnxruntime"), feeds, deadline_s=0.5))


def test_a_result_in_crumbs(device: Callable[[str], Ssh], tmp_path: Path) -> None:
    """Of a thousand million bytes it says, and sends one at a time."""
    board = device("answer(dict(size=1 << 29, sha256=None), b'x')")
    with pytest.raises(EnvironmentMissing, match=r"result\.json of its result arrived damaged"):
        transfer.receive(board._link, "job", "result.json", tmp_path / "it", "device board")
    assert len((tmp_path / "calls").read_text().split()) == 1


def test_a_file_that_hardly_arrives(
    device: Callable[[str], Ssh], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SHORT", 5)
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    says = "answer(dict(absent=[request['digests'][0]]) if do == 'have' else dict(size=request['offset'] + 1, whole=False))"
    with pytest.raises(EnvironmentMissing, match="does not arrive as it was sent"):
        device(says).push({digest_file(path): path})
    assert (tmp_path / "calls").read_text().split().count("put") == 5


def test_pipes_pass_everything_on_and_end_in_time() -> None:
    echo = [
        sys.executable,
        "-c",
        "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d); sys.exit(7)",
    ]
    data = os.urandom(3_000_000)
    assert pipes.run(echo, data, 60, len(data)) == (7, data, b"")
    with pytest.raises(pipes.TooMuch):
        pipes.run(echo, data, 60, len(data) - 1)
    deaf = [
        sys.executable,
        "-c",
        "import os, time; os.close(0); print('said', flush=True); os.write(2, b'x'); time.sleep(60)",
    ]
    assert pipes.run(deaf, data, 2, 100) == (None, b"said\n", b"x")
    held = ["sh", "-c", "sleep 5 & echo said"]  # it is over, and its child has its pipes
    assert pipes.run(held, b"", 2, 100) == (None, b"said\n", b"")
    with pytest.raises(FileNotFoundError):
        pipes.run(["no-such-program"], b"", 1, 1)


def test_a_banner_beside_the_answer_is_no_flood(device: Callable[[str], Ssh]) -> None:
    board = device("print('welcome' * 10_000); answer(dict(facts=FACTS)); print('bye')")
    assert board.facts()["cpu"] == "c" and link.NOISE_BYTES > 70_000
