"""ONNX files to measure, and runtimes that misbehave in a way that is known."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.devices import link, ssh
from deploycompress.devices.local import Local

sys.path.insert(0, str(Path(__file__).parent))
import device_lab
from device_lab import FaultyLink, Sshd

FEED = {"x": np.ones((2, 64), np.float32)}

RUNTIME = '''
"""A runtime whose calls take a known time, or go wrong where they are told to."""
import contextlib
import os
import signal
import time
from pathlib import Path

import numpy as np


class Wayward:
    accepts = frozenset({"onnx"})
    libraries = ("numpy",)

    def missing(self):
        return None

    @contextlib.contextmanager
    def open(self, path, options):
        if options.get("pids"):
            with open(options["pids"], "a") as stream:
                stream.write(str(os.getpid()) + "\\n")
        if options.get("fail") == "load":
            raise RuntimeError("no kernel for this processor")
        yield WaywardSession(options)


class WaywardSession:
    def __init__(self, options):
        self.options = options
        self.calls = 0
        self.opened = time.monotonic()
        self.inputs = {"x": None}

    def bind(self, feed):
        return self.call

    def call(self):
        self.calls += 1
        if self.options.get("order"):
            with open(self.options["order"], "a") as stream:
                stream.write(self.options["label"])
        if self.options.get("fail") == "crash" and self.calls > 3:
            print("about to crash", file=__import__("sys").stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.options.get("fail") == "raise" and self.calls > 3:
            raise RuntimeError("the device was lost")
        if self.options.get("fail") == "hang" and self.calls > 3:
            time.sleep(600)
        print("noise on standard output", flush=True)
        if self.robbed():
            time.sleep(0.003)
        end = time.perf_counter_ns() + int(self.options.get("busy_ms", 1) * 1e6)
        while time.perf_counter_ns() < end:
            pass

    def robbed(self):
        """Whether this call is in one of the tenths of a second in which it does not get the processor."""
        return self.options.get("robbed") and 0.3 < time.monotonic() - self.opened < 0.6

    def fetch(self):
        value = float("nan") if self.options.get("fail") == "nan" else 1.0
        return {"y": np.full((2, 3), value, np.float32)}
'''


PROGRAM = """#!{python}
import json, os, sys, time
import numpy as np
import onnxruntime

session = feed = outputs = None
for line in sys.stdin:
    asked = json.loads(line)
    answer = {{}}
    if asked["do"] == "load":
        assert asked["options"]["threads"] == 1
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = asked["options"]["threads"]
        session = onnxruntime.InferenceSession(asked["model"], options)
    elif asked["do"] == "bind":
        feed = {{name: np.load(file) for name, file in asked["feed"].items()}}
    elif asked["do"] == "run":
        answer["ns"] = []
        for _ in range(asked["calls"]):
            before = time.perf_counter_ns()
            outputs = session.run(None, feed)
            answer["ns"].append(time.perf_counter_ns() - before)
    elif asked["do"] == "fetch":
        answer["outputs"] = {{}}
        for number, of in enumerate(session.get_outputs()):
            file = os.path.join(asked["folder"], "%d.npy" % number)
            np.save(file, outputs[number])
            answer["outputs"][of.name] = file
    {wrong}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """A program that runs ONNX Runtime; ``wrong`` is done before each answer."""

    def write(wrong: str = "pass") -> Path:
        path = tmp_path / "npu-bench"
        path.write_text(PROGRAM.format(python=sys.executable, wrong=wrong))
        return path

    return write


@pytest.fixture
def wayward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A runtime of a user's own, by its reference."""
    (tmp_path / "wayward_runtime.py").write_text(textwrap.dedent(RUNTIME))
    monkeypatch.syspath_prepend(tmp_path)
    return "wayward_runtime:Wayward"


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str, int], Path]:
    """Writes y = x @ w @ w ... for x[batch, 64]; more layers take longer."""

    def make(name: str, layers: int) -> Path:
        nodes = [
            helper.make_node("MatMul", [f"h{i}" if i else "x", "w"], [f"h{i + 1}" if i + 1 < layers else "y"])
            for i in range(layers)
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
            [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
        )
        path = tmp_path / f"{name}.onnx"
        document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        path.write_bytes(document.SerializeToString())
        return path

    return make


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    """This machine, with its jobs and its lock in a folder of the test's own; nothing is left in it."""
    place = tmp_path / "jobs"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield Local()
    assert [p.name for p in place.iterdir() if not p.name.endswith(".lock")] == []


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A device behind a real sshd; its Python is this one."""
    if device_lab.MISSING:
        pytest.skip(device_lab.MISSING)
    with device_lab.sshd(tmp_path_factory.mktemp("sshd") / "device", sys.executable) as server:
        yield server


@pytest.fixture
def board(server: Sshd) -> Iterator[Sshd]:
    """The device before any job; nothing of a job is left on it afterwards."""
    yield server
    assert server.processes() == []
    for place in (server.home / ".cache" / "deploycompress").glob("jobs/*"):
        raise AssertionError(f"{place} was left there")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is lost is noticed within seconds."""
    monkeypatch.setattr(ssh, "CONNECT_S", 2)
    monkeypatch.setattr(ssh, "ALIVE_S", 1)
    monkeypatch.setattr(ssh, "SILENT", 2)
    monkeypatch.setattr(link, "PAUSES_S", (0.1, 0.5))
    monkeypatch.setattr(link, "ANSWER_S", 8.0)
    monkeypatch.setattr("deploycompress.devices.remote.ANSWER_S", 8.0)


@pytest.fixture
def faulty(board: Sshd) -> Iterator[FaultyLink]:
    """A link to the device that fails where the test tells it to."""
    made = FaultyLink(board.port)
    yield made
    made.close()
