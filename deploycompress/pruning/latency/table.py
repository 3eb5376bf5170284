"""Latencies of single operators over their input and output widths, measured on the target."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploycompress.artifact import read_json, write_json
from deploycompress.contracts import Store
from deploycompress.devices.jobs import Progress
from deploycompress.devices.profiles import NotProfiled, profile
from deploycompress.devices.results import OperatorProfile
from deploycompress.graph.catalogue import write_catalogue
from deploycompress.graph.operators import Operator
from deploycompress.graph.quantization import quantize_onnx
from deploycompress.pruning.latency.bench import Place

CALLS, UNSTEADY = 40, 10  # inferences of a catalogue, and how many of them come before it is warm
TRIMMED = 0.25  # of the calls at either end
MOST_POINTS = 200  # of one catalogue
LEAST_BYTES, MOST_BYTES = 2**19, 200_000_000  # that one catalogue moves

Latencies = Mapping[Operator, float]  # milliseconds, by operators without a layer


def measured_table(
    points: Sequence[Operator], model: Sequence[Operator], place: Place, store: Store, progress: Progress
) -> Latencies:
    """The latency of every point; measured once for each device, runtime and set of points.

    ``model``: all operators of the model that they belong to. As much memory as these move is moved between two
    runs of one point, so that it finds the caches as it would in the model. With 200 points together whatever
    their size, a weight was cold beside some and warm beside others: of MobileNetV1 0.25 some operators then took
    half and others twice what they take in it, and plans went where the table was wrong.
    Raises NotProfiled where the runtime does not tell, EnvironmentMissing when the device fails.
    """
    wanted = sorted({point.anywhere() for point in points}, key=repr)
    together = min(MOST_BYTES, max(LEAST_BYTES, sum(operator.bytes_moved for operator in model)))
    key = {**place.key, "together": together, "points": [_row(point) for point in wanted]}

    def make(folder: Path) -> None:
        found = measure(wanted, together, place, folder, progress)
        write_json(folder / "table.json", {"unit": "ms", "latencies": [found[point] for point in wanted]})

    folder = store.folder("latency-tables", key, make)
    return dict(zip(wanted, read_json(folder / "table.json")["latencies"], strict=True))


def _row(point: Operator) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(point).items()}


def measure(
    points: Sequence[Operator],
    together: int,
    place: Place,
    folder: Path,
    progress: Progress = lambda done, message: None,
) -> Latencies:
    """Milliseconds of every point, in catalogues that move ``together`` bytes: the mean of their calls' middle half."""
    found: dict[Operator, float] = {}
    for catalogue in _catalogues(points, together):
        found |= _measure_catalogue(catalogue, place, folder)
        progress(len(found) / len(points), f"latency table: {len(found)} of {len(points)} points")
    return found


def _catalogues(points: Sequence[Operator], together: int) -> Iterator[list[Operator]]:
    """The points in random order, so that a machine that drifts slows no operator more than others."""
    shuffled = list(points)
    random.Random(0).shuffle(shuffled)
    catalogue: list[Operator] = []
    size = 0
    for point in shuffled:
        if catalogue and (len(catalogue) == MOST_POINTS or size + point.bytes_moved > together):
            yield catalogue
            catalogue, size = [], 0
        catalogue.append(point)
        size += point.bytes_moved
    if catalogue:
        yield catalogue


def _measure_catalogue(points: Sequence[Operator], place: Place, folder: Path) -> Latencies:
    with tempfile.TemporaryDirectory(dir=folder, prefix="catalogue-") as temporary:
        path = Path(temporary) / "catalogue.onnx"
        feed = write_catalogue(points, path)
        if place.target.precision == "int8":
            quantized = Path(temporary) / "catalogue.int8.onnx"
            quantize_onnx(path, quantized, [feed], facts=place.device.facts())
            path = quantized
        taken = profile(place.device, place.candidate("latency table", path), feed, calls=CALLS)
    found = {prefix for name in taken if (prefix := name.partition("_")[0])}
    if absent := [number for number in range(len(points)) if f"p{number}" not in found]:
        raise NotProfiled(
            f"{place.target.runtime} gives {len(absent)} of {len(points)} operators other names than the file does"
        )
    return {point: _latency_ms(number, taken) for number, point in enumerate(points)}


def _latency_ms(number: int, taken: Mapping[str, OperatorProfile]) -> float:
    """Of all that the runtime made of one point; a runtime may split or join what the file has.

    A mean, because ONNX Runtime's profiler counts whole microseconds, and small operators take three of them.
    """
    prefix = f"p{number}_"
    steady = [operator.ns[UNSTEADY:] for name, operator in taken.items() if name.startswith(prefix)]
    return sum(_trimmed_mean(samples) for samples in steady if samples) / 1e6


def _trimmed_mean(samples: Sequence[int]) -> float:
    """Without ``TRIMMED`` of them at either end; scipy.stats has it, and takes half a second to import."""
    cut = int(TRIMMED * len(samples))
    return float(np.mean(np.sort(samples)[cut : len(samples) - cut]))


# ---------------------------------------------------------------- looking up


@dataclass(frozen=True)
class Grid:
    """One operator's latencies over a rectangle of widths, in milliseconds [inputs, outputs]."""

    inputs: np.ndarray
    outputs: np.ndarray
    latency_ms: np.ndarray

    def at(self, c_in: float, c_out: float) -> float:
        """Interpolated between the measured widths; the nearest of them outside."""
        i, low_in = _between(self.inputs, c_in)
        j, low_out = _between(self.outputs, c_out)
        rows = self.latency_ms[i] * (1 - low_in) + self.latency_ms[min(i + 1, len(self.inputs) - 1)] * low_in
        return float(rows[j] * (1 - low_out) + rows[min(j + 1, len(self.outputs) - 1)] * low_out)


def _between(values: np.ndarray, value: float) -> tuple[int, float]:
    """Index of the value below, and how far it is to the next one (0..1)."""
    i = int(np.clip(np.searchsorted(values, value, side="right") - 1, 0, len(values) - 1))
    if i + 1 == len(values) or value <= values[i]:
        return i, 0.0
    return i, float((value - values[i]) / (values[i + 1] - values[i]))
