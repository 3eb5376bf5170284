"""A program of the user's own that runs ONNX files on a device, and times its own calls.

It travels to devices inside the runner: the standard library and numpy, Python 3.8 syntax. The program is the file
that devices.yaml declares for its device; the README has what it is asked, one JSON object a line, and what it answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, ClassVar, Iterator, Mapping

import numpy as np

PROGRAM = "program"  # this runtime's name, and the program's in the job folder, which is the current one
PROGRAM_SHARE = 0.25  # of a block's time is what one request may take, about
PROGRAM_CALLS = 10000  # of one request, at most
PROGRAM_GONE_S = 10.0


class Program:
    """Options: whatever the candidate has; the program is given them as they are, ``threads`` and ``provider`` too."""

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    def missing(self) -> str | None:
        if not os.path.isfile(PROGRAM):
            return "it runs on a device that declares `program: ./FILE` in devices.yaml"
        return None

    @contextlib.contextmanager
    def open(self, path: Path, options: Mapping[str, Any]) -> Iterator[ProgramSession]:
        """Raises RuntimeError when the program does not start, or does not load the file."""
        session = ProgramSession(path, options)
        try:
            yield session
        finally:
            session.close()


class ProgramSession:
    """One process of the program, with one file loaded."""

    inputs = None  # a program does not tell: it takes what the job feeds

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        place = os.path.abspath(PROGRAM)
        os.chmod(place, 0o700)
        try:
            self._process = subprocess.Popen(
                [place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=_program_ends_with_us
            )
        except OSError as error:
            raise RuntimeError(f"the program does not start here: {error.strerror}") from error
        self.process_id = self._process.pid
        self._folder = Path(f"program-{self.process_id}")
        self._folder.mkdir()
        self._ask("load", model=str(path), options=dict(options))

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        files = {}
        for number, (name, array) in enumerate(feed.items()):
            files[name] = str(self._folder / f"in{number}.npy")
            np.save(files[name], np.ascontiguousarray(array), allow_pickle=False)
        self._ask("bind", feed=files)

        def call() -> None:
            self._run(1)

        return call

    def fetch(self) -> Mapping[str, np.ndarray]:
        told = self._ask("fetch", folder=str(self._folder)).get("outputs")
        if not isinstance(told, dict) or not told:
            raise RuntimeError('the program answers "fetch" without "outputs": expected {name: .npy file}')
        return {str(name): np.load(str(file), allow_pickle=False) for name, file in told.items()}

    def timed(self, budget_ns: float, least: int, enough: int = sys.maxsize) -> list[int]:
        """As ``candidate.timed_calls``, by the program's clock; several calls a request, so that it is not disturbed."""
        samples: list[int] = []
        began = time.perf_counter_ns()
        while True:
            spent = time.perf_counter_ns() - began
            over = spent >= budget_ns or (spent >= budget_ns / 5 and len(samples) >= enough)
            if over and len(samples) >= least:
                return samples
            usual_ns = sum(samples) / len(samples) if samples else budget_ns
            calls = int(PROGRAM_SHARE * budget_ns / max(usual_ns, 1.0))
            samples += self._run(max(1, min(calls, PROGRAM_CALLS)))

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(PROGRAM_GONE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _run(self, calls: int) -> list[int]:
        ns = self._ask("run", calls=calls).get("ns")
        if not isinstance(ns, list) or len(ns) != calls or not all(type(n) is int and n > 0 for n in ns):
            raise RuntimeError(f'the program answers "run" without "ns": expected {calls} whole nanoseconds')
        return ns

    def _ask(self, do: str, **what: Any) -> Mapping[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: that is told below
            stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            code = self._process.wait()
            how = f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            raise RuntimeError(f'the program ended {how} when it was asked to "{do}"')
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RuntimeError(
                f'the program answers "{do}" by {line[:200]!r}: expected one JSON object in one line'
            )
        if "error" in answer:
            raise RuntimeError(f"the program says: {answer['error']}")
        return answer


def _program_ends_with_us() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
