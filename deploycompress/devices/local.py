"""The machine we run on, as a device."""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploycompress.errors import EnvironmentMissing
from deploycompress.measure.environment import machine
from deploycompress.registry import RUNTIMES
from deploycompress.writing import append_to, clear, copy, write_json

LARGEST_RESULT_BYTES = 1 << 30
LOCK_WAIT_S = 600.0
POLL_S = 0.1


class Local:
    """Jobs run as processes of their own, which end when this one does, in folders of their own."""

    name = "local"

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._jobs: dict[str, subprocess.Popen[bytes]] = {}

    def facts(self) -> Mapping[str, Any]:
        return {"name": self.name, **machine()}

    def missing(self, runtime: str) -> str | None:
        reason: str | None = RUNTIMES.load(runtime)().missing()
        return reason

    def push(self, files: Mapping[str, Path]) -> None:
        """Nothing is copied yet: the runner takes the files by their digest when the job starts."""
        self._files.update({digest: path.resolve() for digest, path in files.items()})

    def start(self, job: Mapping[str, Any]) -> str:
        """Start a measuring job; its id is its folder.

        ``job["runner"]`` and the values of ``job["files"]`` are digests of files that were pushed.
        """
        folder = tempfile.mkdtemp(prefix="deploycompress-job-")
        document = {
            **job,
            "files": {
                name: {"sha256": digest, "from": str(self._files[digest])}
                for name, digest in job["files"].items()
            },
            "lock": str(Path(tempfile.gettempdir()) / "deploycompress.lock"),  # of every account
            "lock_wait_s": LOCK_WAIT_S,
        }
        write_json(Path(folder) / "job.json", document)
        runner = copy(self._files[job["runner"]], Path(folder) / "runner.py")
        with append_to(Path(folder) / "log.txt") as log:
            self._jobs[folder] = subprocess.Popen(
                [sys.executable, "-I", str(runner), folder, "--watch"],
                stdin=subprocess.PIPE,  # closed by the kernel when this process ends: the runner watches it
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return folder

    def poll(self, id: str) -> Mapping[str, Any]:
        state = "ended" if _ended(self._jobs[id], POLL_S) else "running"
        try:
            progress = json.loads((Path(id) / "progress.json").read_text(encoding="utf-8"))
            return {"state": state, "done": float(progress["done"]), "message": str(progress["message"])}
        except FileNotFoundError:
            return {"state": state, "done": 0.0, "message": "starting"}

    def pull(self, id: str) -> Mapping[str, Any]:
        """The result as the runner wrote it. Raises EnvironmentMissing when there is none."""
        code = self._jobs[id].wait()
        path = Path(id) / "result.json"
        if not path.is_file():
            said = (Path(id) / "log.txt").read_text(encoding="utf-8", errors="replace").strip()[-500:]
            raise EnvironmentMissing(
                f"device local: the runner ended with code {code} and left no result: {said}"
            )
        if path.stat().st_size > LARGEST_RESULT_BYTES:
            raise EnvironmentMissing(
                f"device local: the result has {path.stat().st_size} bytes; measure for less time"
            )
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EnvironmentMissing(f"device local: the result is not JSON: {error}") from error
        return dict(document)

    def collect(self, id: str, files: Mapping[str, Path]) -> None:
        """Copy files that the job wrote, by their names in its folder. Raises EnvironmentMissing without one."""
        for name, place in files.items():
            try:
                copy(Path(id) / name, place)
            except OSError as error:
                raise EnvironmentMissing(f"device local: {name} of the result: {error.strerror}") from error

    def stop(self, id: str) -> None:
        process = self._jobs.pop(id)
        if process.poll() is None:
            process.kill()  # its children end with it
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        clear(Path(id))


def _ended(process: subprocess.Popen[bytes], wait_s: float) -> bool:
    """Whether it has, after that time at most; told by the kernel where it can, so at once."""
    if process.poll() is not None:
        return True
    try:
        end = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not every system has it, nor every sandbox
        time.sleep(wait_s)
        return process.poll() is not None
    try:
        multiprocessing.connection.wait([end], wait_s)
    finally:
        os.close(end)
    return process.poll() is not None
