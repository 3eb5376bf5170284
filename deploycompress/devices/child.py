"""One candidate's process as the runner sees it: what it is told, what it answers, and how it ended.

Travels to devices as a part of the runner: the standard library alone, Python 3.8 syntax.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from deploycompress.devices.candidate import Document, Failure

SETTINGS = (
    "feed", "block_ms", "untimed_ms", "warmup_ms", "least_samples", "enough_samples", "calls", "feeds",
)  # fmt: skip


class Child:
    """One candidate's process, seen from the parent: asked in JSON lines, answering in JSON lines."""

    def __init__(self, program: str, number: int, candidate: Document, job: Document) -> None:
        """``program``: the joined file that runs a candidate when it is given ``--child``."""
        self.log = Path(f"log-{number}.txt")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I" if sys.flags.isolated else "-E", program, "--child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.first = {
            "candidate": candidate,
            "number": number,
            **{key: job[key] for key in SETTINGS if key in job},
        }
        self.received = b""

    def tell(self, command: Document) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, as whoever waits for its answer will see
            self.process.stdin.write(json.dumps({**command, **self.first}).encode() + b"\n")
            self.process.stdin.flush()
        self.first = {}

    def answer(self, deadline: float) -> Document:
        """Of the last command. Raises Failure."""
        try:
            answer: Document = json.loads(self._line(deadline))
        except (BrokenPipeError, ValueError):
            raise self._died() from None
        if "error" in answer:
            raise Failure(answer["error"]["kind"], answer["error"]["message"])
        return answer

    def _line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self.received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failure("deadline", "it did not finish within the job's time limit")
            if select.select([descriptor], [], [], min(left, 1.0))[0]:
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    raise BrokenPipeError
                self.received += piece
        line, _, self.received = self.received.partition(b"\n")
        return line

    def _died(self) -> Failure:
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return Failure("run", "its process sent something else than an answer")
        last = self.log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
        told = f"; it said: {last}" if last else ""
        if code < 0:
            names = {int(s): s.name for s in signal.Signals}
            return Failure("signal", f"its process was ended by {names.get(-code, -code)}{told}")
        return Failure("run", f"its process ended with code {code}{told}")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
