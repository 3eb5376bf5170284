"""TensorRT by its own ``trtexec``, on devices whose Python has no TensorRT: builds an engine, runs and times it.

It travels to devices inside the runner: the standard library and numpy, Python 3.8 syntax. Options and formats are
those of NVIDIA/TensorRT, samples/common (sampleOptions.cpp, sampleReporting.cpp), 10.x and 11.x: 11 leaves transfers
out and records a CUDA graph unless it is told otherwise, so both are said. It times calls in a process for each block,
which loads the engine first; that is no part of a time.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Callable, ClassVar, Iterator, Mapping

import numpy as np

TRTEXEC_PLACES = ("trtexec", "/usr/src/tensorrt/bin/trtexec")  # PATH; where JetPack and the packages put it
TRTEXEC_LOADS_S = 600.0


class TrtExec:
    """Options: ``transfers`` (true: a call's time has the copies in and out)."""

    accepts: ClassVar[frozenset[str]] = frozenset({"engine"})
    engine_file: ClassVar[str] = "model.engine"
    bounded: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)
    programs: ClassVar[tuple[str, ...]] = TRTEXEC_PLACES  # one of them is there

    def missing(self) -> str | None:
        if _trtexec() is None:
            return f"there is no trtexec, neither in PATH nor at {TRTEXEC_PLACES[1]}; it is part of TensorRT"
        return None

    @contextlib.contextmanager
    def open(self, path: Path, options: Mapping[str, Any]) -> Iterator[TrtExecSession]:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            yield TrtExecSession(path, bool(options.get("transfers", True)), Path(folder))

    def build(self, source: Path, destination: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """As ``TensorRT.build``, which has its options; the types of the ONNX file decide the precision.

        Raises RuntimeError when there is no engine.
        """
        words = [f"--onnx={source}", f"--saveEngine={destination}", "--skipInference", "--stronglyTyped"]
        words.append(f"--builderOptimizationLevel={options.get('optimization_level', 3)}")
        for number, name in enumerate(("minShapes", "optShapes", "maxShapes")):
            shapes = {i: shapes[number] for i, shapes in (options.get("profile") or {}).items()}
            if shapes:
                words.append(f"--{name}={_trtexec_shapes(shapes)}")
        if options.get("workspace_bytes"):
            words.append(f"--memPoolSize=workspace:{int(options['workspace_bytes']) / 2**20:g}M")
        if options.get("timing_cache"):
            words.append(f"--timingCacheFile={options['timing_cache']}")
        if options.get("version_compatible"):
            words.append("--versionCompatible")
        level = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
        if options.get("hardware_compatibility"):
            words.append(f"--hardwareCompatibilityLevel={level[str(options['hardware_compatibility'])]}")
        said = _trtexec_run(words, TRTEXEC_LOADS_S * 12)
        if not destination.is_file():
            raise RuntimeError(f"trtexec made no engine of {source.name}; it said: {said[-500:]}")
        return {"tensorrt": ".".join(map(str, _trtexec_version(said)))}


class TrtExecSession:
    """One engine, loaded again by each ``trtexec``; the process of a call is gone after it."""

    inputs = None  # trtexec does not tell beforehand: it takes what the job feeds
    process_id = None
    warms_up = True  # each block, by itself

    def __init__(self, path: Path, transfers: bool, folder: Path) -> None:
        self._path, self._transfers, self._folder = path, transfers, folder
        self._inputs: list[str] = []
        self._version: tuple[int, ...] | None = None

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        files = []
        for number, (name, array) in enumerate(feed.items()):
            file = self._folder / f"in{number}.bin"
            np.ascontiguousarray(array).tofile(str(file))
            files.append(f"{_trtexec_name(name)}:{file}")
        self._inputs = [
            "--loadInputs=" + ",".join(files),
            "--shapes=" + _trtexec_shapes({name: array.shape for name, array in feed.items()}),
        ]
        return lambda: self._run(["--warmUp=0", "--duration=0", "--iterations=1"], 0.0)

    def fetch(self) -> Mapping[str, np.ndarray]:
        place = self._folder / "out.json"
        self._run(["--warmUp=0", "--duration=0", "--iterations=1", f"--exportOutput={place}"], 0.0)
        text = re.sub(r"(?<![\w\"])(-?)(nan|inf)\b", _trtexec_number, place.read_text(encoding="utf-8"))
        found = {}
        for output in json.loads(text):
            shape = [int(size) for size in output["dimensions"].split("x") if size]
            found[output["name"]] = np.asarray(output["values"], np.float32).reshape(shape)
        return found

    def timed(self, budget_ns: float, least: int, enough: int = 0) -> list[int]:
        """Nanoseconds of each call in at least that time; trtexec runs for whole seconds, and at least one."""
        place, warmup_ms, seconds = self._folder / "times.json", 200, max(1, round(budget_ns / 1e9))
        words = [f"--warmUp={warmup_ms}", f"--duration={seconds}", f"--iterations={least}", "--avgRuns=1"]
        self._run([*words, f"--exportTimes={place}"], float(seconds))
        calls = json.loads(place.read_text(encoding="utf-8"))  # those of the warm-up among them
        spent = "latencyMs" if self._transfers else "computeMs"
        return [int(1e6 * call[spent]) for call in calls if call["startComputeMs"] >= warmup_ms]

    def _run(self, words: list[str], seconds: float) -> None:
        if self._version is None:
            self._version = _trtexec_version(_trtexec_run(["--help"], TRTEXEC_LOADS_S))
        eleven = self._version >= (11,)
        alike = ["--useSpinWait"]
        if eleven:
            alike += ["--noCudaGraph", *(["--includeDataTransfers"] if self._transfers else [])]
        elif not self._transfers:
            alike.append("--noDataTransfers")
        _trtexec_run(
            [f"--loadEngine={self._path}", *self._inputs, *words, *alike], TRTEXEC_LOADS_S + 2 * seconds
        )


def _trtexec() -> str | None:
    return next((found for found in map(shutil.which, TRTEXEC_PLACES) if found), None)


def _trtexec_run(words: list[str], timeout_s: float) -> str:
    """What it said. Raises RuntimeError with its errors when it fails, and after ``timeout_s``."""
    program = _trtexec()
    if program is None:
        raise RuntimeError(str(TrtExec().missing()))
    try:
        done = subprocess.run(
            [program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"trtexec did not end within {timeout_s:.0f} s") from None
    said = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        errors = [line for line in said.splitlines() if "[E]" in line] or said.splitlines()
        raise RuntimeError(f"trtexec ended with code {done.returncode}: {' '.join(errors[-3:])[-600:]}")
    return said


def _trtexec_version(said: str) -> tuple[int, ...]:
    """Of ``[TensorRT v101303]``: two digits each for minor and patch; what it does not say counts as 10."""
    match = re.search(r"\[TensorRT v(\d+)", said)
    number = int(match.group(1)) if match else 100000
    return (number // 10000, number // 100 % 100, number % 100)


def _trtexec_name(name: str) -> str:
    return f"'{name}'" if ":" in name or "," in name else name


def _trtexec_shapes(shapes: Mapping[str, Any]) -> str:
    return ",".join(f"{_trtexec_name(name)}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _trtexec_number(match: Any) -> str:
    """C++ prints them as JSON does not have them, and Python reads them."""
    return str(match.group(1)) + {"nan": "NaN", "inf": "Infinity"}[match.group(2)]
