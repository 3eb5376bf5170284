"""A candidate's process: opens one artefact in its runtime, warms it up, and gives back blocks of raw timings.

It travels as a part of the runner: the standard library, numpy and the runtime; Python 3.8 syntax.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np

from deploycompress.devices.counters import Counters, Gpus, packages_uj, taken_uj
from deploycompress.devices.disturbance import clock_mhz

STEADY = 0.02  # the medians of two windows of warm-up differ by less
LONGEST_WARMUP = 3  # times the time that was asked for
MOST_SAMPLES = 200000  # of one block
SHORTEST = 5  # a block of very quick calls lasts at least its time divided by this

BUILT, INSPECTED = "built.engine", "layers.json"  # of a building job, in its folder

Document = Dict[str, Any]


class Failure(Exception):
    """Why a candidate, or the job, has no figures; ``kind`` is what the host decides by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def to_json(self) -> Document:
        return {"kind": self.kind, "message": str(self)}


def serve(check: Callable[[str], Any], runtimes: Document) -> int:
    """Answer the parent's commands until it closes the pipe. ``runtimes``: name -> class."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints is not an answer
    opened = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "candidate" in command:  # the first one
                opened = Opened(command, check, runtimes)
            assert opened is not None
            answer = getattr(opened, command["do"])()
        except Failure as failure:
            answer = {"error": failure.to_json()}
        except Exception as error:
            answer = {"error": {"kind": "run", "message": f"{type(error).__name__}: {error}"}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # destructors of native libraries have nothing left to say, and some of them crash


class Opened:
    """One artefact in its runtime, ready to be timed."""

    def __init__(self, command: Document, check: Callable[[str], Any], runtimes: Document) -> None:
        self.candidate: Document = command["candidate"]
        self.command = command
        self.check = check
        self.runtime = runtimes[self.candidate["runtime"]]()
        self.call: Callable[[], None] = lambda: None
        self.session: Any = None
        self.gpus = None if self.candidate["options"].get("provider") == "cpu" else Gpus()

    def prepare(self) -> Document:
        """What takes time and is not measured, so that all candidates may do it at once."""
        self.require()
        return {"versions": self.import_libraries()}

    def open(self) -> Document:
        """Load, run for the first time, warm up. Milliseconds, and the peak of resident memory in bytes."""
        load_ms, session = timed(self.load)
        feed = self.feed(session, self.command["feed"])
        bind_ms, self.call = timed(lambda: session.bind(feed))  # a runtime may compile for these shapes
        first_ms, _ = timed(self.call)
        self.session = session
        outputs = describe(session.fetch())
        warmup_ms, steady = self.warm_up()
        gc.collect()
        gc.freeze()  # else each block would begin by looking through all that the libraries made
        return {
            "load_ms": load_ms + bind_ms,
            "first_inference_ms": first_ms,
            "warmup_ms": warmup_ms,
            "steady": steady,
            "outputs": outputs,
            "peak_memory_bytes": peak_memory_bytes(getattr(session, "process_id", "self")),
            "gpu_memory_bytes": None if self.gpus is None else self.gpus.memory_bytes(),
        }

    def profile(self) -> Document:
        """Operator, by its name in the runtime -> its type, provider, precision and nanoseconds of every call."""
        profile = getattr(self.runtime, "profile", None)
        if profile is None:
            raise Failure("unsupported", "this runtime does not tell what a single operator takes")
        path, calls = Path(self.candidate["file"]), int(self.command["calls"])
        feed = {name: np.load(file, allow_pickle=False) for name, file in self.command["feed"].items()}
        try:
            return {"operators": profile(path, self.candidate["options"], feed, calls)}
        except NotImplementedError as error:
            raise Failure("unsupported", str(error)) from error

    def answer(self) -> Document:
        """The outputs for each of the job's feeds, as files; one that is no number is written as it is."""
        session = self.load()
        names: list[str] = []
        for number, files in enumerate(self.command["feeds"]):
            session.bind(self.feed(session, files))()
            outputs = session.fetch()
            names = list(outputs)
            for place, name in enumerate(names):
                path = answer_file(self.command["number"], number, place)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                np.save(path, np.ascontiguousarray(outputs[name]), allow_pickle=False)
        return {"answered": names}

    def build(self) -> Document:
        """The runtime's own engine of the file, and what the runtime tells of its layers, as files."""
        build = getattr(self.runtime, "build", None)
        if build is None:
            raise Failure("unsupported", "this runtime builds no engines")
        told = build(Path(self.candidate["file"]), Path(BUILT), self.candidate["options"])
        inspect = getattr(self.runtime, "inspect", None)
        if inspect is not None:
            Path(INSPECTED).write_text(json.dumps(inspect(Path(BUILT))), encoding="utf-8")
        return {"built": told, "inspected": inspect is not None}

    def require(self) -> None:
        """The runtime is there, and the file may be given to it."""
        missing = self.runtime.missing()
        if missing is not None:
            raise Failure("missing", missing)
        path = Path(self.candidate["file"])
        if path.suffix == ".onnx":
            try:
                self.check(str(path))
            except ValueError as error:
                raise Failure("refused", str(error)) from error

    def import_libraries(self) -> Document:
        modules = {name: importlib.import_module(name) for name in self.runtime.libraries}
        return {name: str(getattr(module, "__version__", "")) for name, module in modules.items()}

    def load(self) -> Any:
        self.context = self.runtime.open(Path(self.candidate["file"]), self.candidate["options"])
        try:
            return self.context.__enter__()
        except Exception as error:
            raise Failure("load", str(error)) from error

    def feed(self, session: Any, files: dict[str, str]) -> dict[str, np.ndarray]:
        wanted = list(files if session.inputs is None else session.inputs)
        absent = [name for name in wanted if name not in files]
        if absent:
            raise Failure("load", f"it wants the inputs {wanted}, and the job feeds {sorted(files)}")
        return {name: np.load(files[name], allow_pickle=False) for name in wanted}

    def times(self, budget_ns: float, least: int, enough: int = MOST_SAMPLES) -> list[int]:
        """As ``timed_calls``; by the clock of the program behind the session, where there is one."""
        own = getattr(self.session, "timed", None)
        if own is not None:
            return list(own(budget_ns, least, enough))
        return timed_calls(self.call, budget_ns, least, enough)

    def warm_up(self) -> tuple[float, bool]:
        """Run until the medians of two windows agree; gives the time it took and whether they did."""
        wanted_ns = self.command["warmup_ms"] * 1e6
        started = time.perf_counter_ns()
        before = 0.0
        while True:
            now = float(np.median(self.times(wanted_ns / 4, 3)))
            elapsed = time.perf_counter_ns() - started
            steady = abs(now - before) <= STEADY * now
            if (steady and elapsed >= wanted_ns) or elapsed >= LONGEST_WARMUP * wanted_ns:
                return elapsed / 1e6, steady
            before = now

    def block(self) -> Document:
        """Raw timings, with what else is known of the time they took."""
        budget_ns = self.command["block_ms"] * 1e6
        if not getattr(self.session, "warms_up", False):
            self.times(max(budget_ns / 10, self.command["untimed_ms"] * 1e6), 1)
        least, enough = self.command["least_samples"], self.command["enough_samples"]
        energy, began_ns, used_ns = self.energy_uj(), time.perf_counter_ns(), time.process_time_ns()
        samples = self.times(budget_ns, least, enough)
        used_ns, took_ns = time.process_time_ns() - used_ns, time.perf_counter_ns() - began_ns
        return {
            "block": {
                "samples_ns": samples,
                "cpu_share": None
                if hasattr(self.session, "timed")
                else used_ns / took_ns,  # another process's
                "mhz": clock_mhz(),
                "energy_uj": taken_uj(energy, self.energy_uj()),
            }
        }

    def energy_uj(self) -> Counters:
        return {**packages_uj(), **(self.gpus.energy_uj() if self.gpus is not None else {})}


def answer_file(candidate: int, feed: int, output: int) -> str:
    """Where one output of one candidate lies in the job folder, by their numbers."""
    return f"answers/{candidate}/{feed}.{output}.npy"


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    before = time.perf_counter_ns()
    value = function()
    return (time.perf_counter_ns() - before) / 1e6, value


def timed_calls(
    call: Callable[[], None], budget_ns: float, least: int, enough: int = MOST_SAMPLES
) -> list[int]:
    """Nanoseconds of each call: for as long as the budget lasts, or a fifth of it where that is ``enough`` calls."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    gc.collect()
    gc.disable()
    try:
        now = clock()
        end, soonest = now + budget_ns, now + budget_ns / SHORTEST
        while (now < end and (now < soonest or len(samples) < enough)) or len(samples) < least:
            before = clock()
            call()
            now = clock()
            samples.append(now - before)
    finally:
        gc.enable()
    return samples


def describe(outputs: Any) -> Document:
    """Shape, type and soundness of each output."""
    return {
        name: {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "finite": bool(array.dtype.kind != "f" or np.isfinite(array).all()),
        }
        for name, array in outputs.items()
    }


def peak_memory_bytes(process: Any) -> int | None:
    """The most resident memory that a process has had, with its runtime; of None, which is none of ours, None."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _end_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
