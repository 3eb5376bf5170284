"""Runs an ONNX file on given inputs, after the safe reader has been through it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploycompress.contracts import Model, Runtime
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.runtimes.onnx_file import check
from deploycompress.runtimes.onnxruntime import OnnxRuntime

Feed = Mapping[str, np.ndarray]


def run_onnx(
    path: Path, feeds: Iterable[Feed], options: Mapping[str, Any] | None = None
) -> list[dict[str, np.ndarray]]:
    """Outputs by name for each feed, from ONNX Runtime on one thread of the CPU; ``options`` as it takes them.

    Raises ConfigError when the reader refuses the file or a feed lacks an input, StageFailed when ONNX
    Runtime does not load or run it.
    """
    inspect_onnx(path)
    return run(OnnxRuntime(), path, feeds, options or {})


def run(
    runtime: Runtime, path: Path, feeds: Iterable[Feed], options: Mapping[str, Any]
) -> list[dict[str, np.ndarray]]:
    """Outputs by name for each feed, of any file that ``runtime`` opens. Raises StageFailed when it does not run."""
    results = []
    try:
        with runtime.open(path, options) as session:
            for feed in feeds:
                session.bind(select(feed, session.inputs, path))()
                results.append(dict(session.fetch()))
    except (ConfigError, StageFailed):
        raise
    except (
        Exception
    ) as error:  # onnxruntime's own classes, one for each status code, and whatever others raise
        name = "ONNX Runtime" if isinstance(runtime, OnnxRuntime) else type(runtime).__name__
        raise StageFailed(f"{path.name} does not run in {name}: {error}") from error
    return results


def inspect_onnx(path: Path) -> dict[str, Any]:
    """What ``onnx_file.check`` tells of a file. Raises ConfigError when it refuses it."""
    try:
        return check(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def precision_of(told: Mapping[str, Any]) -> str:
    """Of a file that nobody says it of, by its operators; one without any sign of INT8 counts as FP32."""
    return "int8" if any("Quantize" in op or "Integer" in op for op in told["ops"]) else "fp32"


def select(feed: Feed, inputs: Iterable[str] | None, path: Path) -> Feed:
    """The arrays that the file asks for, where it tells; an exporter drops inputs that nothing reads."""
    wanted = list(feed if inputs is None else inputs)
    absent = [name for name in wanted if name not in feed]
    if absent:
        raise ConfigError(f"{path.name} wants the inputs {wanted}, and was given {sorted(feed)}")
    return {name: feed[name] for name in wanted}


def network_of(kind: str, model: Model) -> dict[str, Any]:
    """What a runtime is told besides its own options: of a checkpoint, how to put the network together."""
    return {"network": model.recipe} if kind == "checkpoint" else {}


def fixed_batch_of(path: Path) -> int | None:
    """The batch size that an ONNX file fixes; None where it is dynamic, or the file is not an ONNX file."""
    if path.suffix != ".onnx":
        return None
    shapes = [spec["shape"] for spec in inspect_onnx(path)["inputs"].values()]
    first = shapes[0][0] if shapes and shapes[0] else None
    return first if isinstance(first, int) else None
