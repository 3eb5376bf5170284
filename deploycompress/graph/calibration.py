"""Calibration data as ONNX Runtime's calibrators read them, checked before anything is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError
from deploycompress.graph.execution import Feed, fixed_batch_of
from deploycompress.graph.feeds import regroup
from deploycompress.model.parity import to_numpy

# TensorProto.DataType -> numpy, of the types that inputs have
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}


def calibration_feeds(loader: Iterable[Batch], path: Path, wanted: int | None) -> Iterator[Feed]:
    """At most ``wanted`` samples for the ONNX file at ``path``, all where that is None; a fixed batch is never cut."""
    fixed, given = fixed_batch_of(path), 0
    for _, feed in regroup(loader, fixed):
        left = sys.maxsize if wanted is None else wanted - given
        if left <= 0:
            return
        taken = to_numpy(feed if fixed else {name: tensor[:left] for name, tensor in feed.items()})
        given += len(next(iter(taken.values())))
        yield taken


class CalibrationFeeds(CalibrationDataReader):  # type: ignore[misc]
    """Gives out feeds one at a time. Raises ConfigError at the first that does not fit the model's inputs."""

    def __init__(self, feeds: Iterable[Feed], inputs: Mapping[str, Mapping[str, Any]]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)
        self._inputs = inputs
        self.samples = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        feed = next(self._feeds, None)
        if feed is None:
            return None
        checked = {name: _checked(name, feed, spec) for name, spec in self._inputs.items()}
        self.samples += next(iter(checked.values())).shape[0]
        return checked


def _checked(name: str, feed: Feed, spec: Mapping[str, Any]) -> np.ndarray:
    if name not in feed:
        raise ConfigError(f"calibration data has no input {name!r}, only {sorted(feed)}")
    array = np.ascontiguousarray(feed[name])
    shape = spec["shape"]
    fits = array.ndim == len(shape) and all(
        not isinstance(wanted, int) or wanted == given
        for wanted, given in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"calibration data of input {name!r} has the shape {list(array.shape)}, expected {shape}"
        )
    wanted = DTYPES.get(spec["type"])
    if wanted is not None and array.dtype != wanted:
        raise ConfigError(f"calibration data of input {name!r} is {array.dtype}, expected {wanted}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(
            f"calibration data of input {name!r} holds NaN or infinity; look at the data's transform"
        )
    return array
