"""A tiny pipeline with every stage, and runs of it that are forked from one warm process and can be ended anywhere."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress import crash_points

RESULTS = Path(__file__).parent
FORKED = RESULTS / "forked"  # what runs here have in their server
MODEL = '''
"""A network that trains in a second."""
from torch import nn


def build(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )
'''
PIPELINE = """
name: every-stage
seed: 1
model:
  build: model.py:build
  inputs: {image: {shape: [batch, 1, 8, 8]}}
task: classification
data: {source: digits, image_size: 8, batch_size: 128, calibration: 32}
target: {threads: 1}
stages:
  - train: {epochs: 2, lr: 0.1, checkpoint_every: 7 steps}
  - prune: {target: {macs: 60%}, criterion: magnitude}
  - distill: {epochs: 1, lr: 0.05, checkpoint_every: 5 steps}
  - sparsify: {sparsity: 20%}
  - factorize: {rank: 50%}
  - export
  - quantize: {precision: int8}
  - compile: {candidates: [{runtime: onnxruntime, precision: fp32}], budget: 30 s, from: export}
  - build_engine: {runtime: onnxruntime, from: export}
  - pack: {from: quantize}
"""
BENCHMARK = "  - benchmark\n"
GATES = "gates: {}\n"


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, negative where a signal killed it."""

    code: int
    output: str
    seconds: float


class Project:
    """A folder with the pipeline, its run directory and its store."""

    def __init__(self, folder: Path, *, benchmark: bool = False) -> None:
        """The folder is filled where it is not there yet."""
        self.folder, self.pipeline = folder, folder / "pipeline.yaml"
        self.out, self.store = folder / "run", folder / "store"
        if not self.pipeline.exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.py").write_text(MODEL)
            self.pipeline.write_text(PIPELINE.lstrip() + BENCHMARK * benchmark + GATES)

    def copy(self, folder: Path) -> Project:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        return Project(folder)

    def forget(self) -> None:
        """Nothing was made yet."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.store, ignore_errors=True)

    def arguments(self, *more: str) -> list[str]:
        return [
            "run",
            str(self.pipeline),
            "--out",
            str(self.out),
            "--store",
            str(self.store),
            "--no-rehearsal",
            *more,
        ]

    def manifests(self) -> dict[str, dict[str, Any]]:
        found = [json.loads(p.read_text()) for p in sorted(self.out.glob("[0-9]*/manifest.json"))]
        return {m["id"]: m for m in found}

    def digests(self) -> dict[str, list[Any]]:
        """By step: of each artefact, where the manifest does not say that they may be others."""
        return {
            id: [a["sha256"] for a in m["artifacts"]]
            for id, m in self.manifests().items()
            if m["inexact"] is None
        }

    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "report.json").read_text()))

    def left_over(self) -> list[str]:
        """Half-written things that are still there after a run has ended well."""
        from deploycompress.writing import ASIDE

        left = [p for p in (*self.out.rglob(".*"), *self.store.rglob(".*")) if ASIDE.fullmatch(p.name)]
        return [str(p.relative_to(self.folder)) for p in (*left, *(self.store / "tmp").glob("*"))]


class Lab:
    """Forks runs that share one server, which has imported the frameworks; one lab a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.points = folder / "points"
        self.points.mkdir(parents=True)
        os.environ[crash_points.VARIABLE] = str(
            self.points
        )  # before the server starts: workers inherit it from there
        os.environ["OMP_NUM_THREADS"] = "1"
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "t")
        (folder / "t").mkdir()
        import torch  # noqa: F401  (the user's model wants it: a forked run has it then)

        from deploycompress.engine import launch
        from deploycompress.report import pages, scatter  # noqa: F401

        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(FORKED), os.environ.get("PYTHONPATH"))))
        launch.PRELOADED.append("short_measurements")
        launch.warm_up()
        self._golden: Project | None = None
        self.seconds_cold = 0.0

    @property
    def golden(self) -> Project:
        """What a run leaves that nothing disturbs: all stages but the benchmark."""
        if self._golden is None:
            project = Project(self.folder / "golden")
            ended = self.run(project)
            assert ended.code == 0, ended.output
            self._golden, self.seconds_cold = project, ended.seconds
        return self._golden

    def start(
        self,
        arguments: list[str],
        *,
        points: dict[str, Any] | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> tuple[int, Path]:
        """Fork a run, in a process group of its own; its pid, and the file that its output goes to."""
        (self.points / crash_points.PLAN).unlink(missing_ok=True)
        (self.points / crash_points.LOG).unlink(missing_ok=True)
        output = Path(tempfile.mkstemp(dir=self.folder, prefix="output-")[1])
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_a_run(arguments, output, ready, prepare)
        os.close(ready)
        if points is not None:
            plan = points if "errno" in points else {**points, "group": pid}
            (self.points / crash_points.PLAN).write_text(json.dumps(plan))
        os.write(go, b"x")
        os.close(go)
        return pid, output

    def wait(self, started: tuple[int, Path], since: float, seconds: float = 300) -> Ended:
        pid, output = started
        deadline = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise TimeoutError(output.read_text())
            time.sleep(0.01)
        text = output.read_text()
        output.unlink()
        return Ended(os.waitstatus_to_exitcode(status), text, time.monotonic() - since)

    def run(
        self, project: Project, *more: str, points: dict[str, Any] | None = None, **options: Any
    ) -> Ended:
        since = time.monotonic()
        return self.wait(self.start(project.arguments(*more), points=points, **options), since)

    def reached(self) -> list[str]:
        """The points that the last run with a plan came to, in order."""
        log = self.points / crash_points.LOG
        return log.read_text().splitlines() if log.exists() else []

    def no_processes(self, project: Project, seconds: float) -> float | None:
        """How long it takes until none is left that has a file of this project open; None where one stays."""
        since = time.monotonic()
        while processes_of(project.folder):
            if time.monotonic() - since > seconds:
                return None
            time.sleep(0.02)
        return time.monotonic() - since


def _be_a_run(arguments: list[str], output: Path, ready: int, prepare: Callable[[], None]) -> None:
    """What the forked process does; it shares its parent's server, which is no child of it."""
    code = 1
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        multiprocessing.forkserver.ensure_running = lambda: None
        multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
        multiprocessing.resource_tracker._resource_tracker.ensure_running = lambda: None  # type: ignore[attr-defined]
        os.read(ready, 1)
        prepare()
        from deploycompress.cli import main

        main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def processes_of(folder: Path) -> list[int]:
    """Every living process that has a file below the folder open."""
    marked = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(p) for p in (place / "fd").iterdir()}
        except OSError:
            continue
        if any(link.startswith(f"{folder}/") for link in links):
            marked.append(int(place.name))
    return marked


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """In memory where there is such a file system: what kill -9 leaves does not depend on a disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="dc-lab-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield Lab(folder)
    finally:
        multiprocessing.util._run_finalizers()  # the server's own folder lies in this one
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int, parent: Path | None = None) -> Iterator[Path | str]:
    """A memory cgroup for processes of this test, below ``parent`` or our own; else why there is none."""
    group = (parent or _own_memory_cgroup()) / f"deploycompress-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        yield f"no memory cgroup can be made: {error.strerror}"
        return
    try:
        file = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
        with open(group / file, "r+") as limit:  # a new file is nothing that a cgroup has
            limit.write(str(limit_bytes))
    except OSError as error:
        group.rmdir()
        yield f"no memory cgroup can be limited: {error.strerror}"
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def _own_memory_cgroup() -> Path:
    """Of version 1, where the memory controller has a tree of its own, or of version 2."""
    root = unified = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return root / "memory" / path.lstrip("/")
        if not controllers:
            unified = root / path.lstrip("/")
    return unified


def note_results(name: str, document: dict[str, Any], out: Path | None = None) -> None:
    """Write ``NAME.json`` with the machine that it was found on, and RESULTS.md anew from the ``figures`` of all."""
    from deploycompress.artifact import write_json, write_text
    from deploycompress.measure.environment import environment

    place = out or RESULTS
    write_json(place / f"{name}.json", {**document, "environment": environment()})
    rows = ["| what | tried | good | script |", "|---|---|---|---|"]
    for path in sorted(place.glob("*.json")):
        found = json.loads(path.read_text())
        rows += [
            f"| {what} | {tried} | {good} | `{path.stem}.py` |"
            for what, tried, good in found.get("figures", ())
        ]
    write_text(place / "RESULTS.md", "\n".join(["# Reliability: figures", "", *rows]) + "\n")
