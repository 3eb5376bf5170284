"""Benchmarks the artefacts that a command line names, at each of the batch sizes it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploycompress.commands.given import Given, open_given
from deploycompress.commands.measuring import How, candidate_of, checked_there
from deploycompress.commands.random_inputs import Wanted, feed_for
from deploycompress.commands.side_by_side import (
    FEWEST_ALIKE,
    Row,
    SideBySide,
    cosines,
    distinct,
    side_by_side,
)
from deploycompress.contracts import Device
from deploycompress.devices.jobs import Progress
from deploycompress.measure.environment import environment
from deploycompress.measure.plan import MODES, Mode

SCHEMA = 2


@dataclass(frozen=True)
class Setting:
    """All artefacts at one batch size, on the same inputs."""

    batch_size: int
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]  # name -> type and shape
    found: SideBySide
    cosines: Mapping[str, float | str]  # by artefact: with the first one's outputs, or why there is none
    notes: tuple[str, ...]

    @property
    def warnings(self) -> list[str]:
        """Artefacts that do not compute what the first one does: their speed is that of something else."""
        first = self.found.rows[0].id
        unlike = [id for id, of in self.cosines.items() if isinstance(of, float) and of < FEWEST_ALIKE]
        told = [f"{id} against {first}: {of}" for id, of in self.cosines.items() if isinstance(of, str)]
        if unlike:
            told.append(
                f"other outputs than {first} gives, on random inputs (cosine below {FEWEST_ALIKE}): {', '.join(unlike)}; "
                "a pruned network may, a converted one may not"
            )
        return told


@dataclass(frozen=True)
class Benchmarked:
    givens: tuple[Given, ...]
    device: Mapping[str, Any]  # its facts, with its name
    mode: Mode
    settings: tuple[Setting, ...]
    aa: bool  # whether the first one's second run is a row of its own

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "device": self.device["name"],
            "facts": dict(self.device),
            "mode": self.mode,
            "settings": [self._setting(setting) for setting in self.settings],
            "environment": environment(),
        }

    def _setting(self, setting: Setting) -> dict[str, Any]:
        found = setting.found
        return {
            "batch_size": setting.batch_size,
            "inputs": {
                name: {"dtype": dtype, "shape": list(shape)}
                for name, (dtype, shape) in setting.inputs.items()
            },
            "noise_floor": found.floor(),
            "again": None if found.again is None else _row(found.again),
            "rows": [
                _row(row)
                | {
                    "file": str(given.artifact.path),
                    "sha256": given.digest,
                    "bytes": given.bytes,
                    "verdict": found.word(row),
                    "cosine": cosine if isinstance(cosine := setting.cosines.get(row.id), float) else None,
                }
                for row, given in zip(found.rows, self.givens, strict=True)
            ],
            "warnings": setting.warnings,
            "notes": list(setting.notes),
        }


def _row(row: Row) -> dict[str, Any]:
    m = row.measurement
    speedup = row.speedups.get("p50")
    return {
        "artifact": row.id,
        "runtime": m.runtime,
        "provider": m.provider,
        "threads": m.threads,
        "latency_ms": asdict(m.latency_ms),
        "throughput_per_s": row.throughput,
        "load_ms": m.load_ms,
        "first_inference_ms": m.first_inference_ms,
        "peak_memory_bytes": m.peak_memory_bytes,
        "gpu_memory_bytes": m.gpu_memory_bytes,
        "energy_mj": m.energy_mj,
        "energy_of": list(m.energy_of),
        "emulated": m.emulated,
        "samples": None if row.samples is None else str(row.samples),
        "speedup": None if speedup is None else asdict(speedup),
        "notes": list(m.notes),
    }


def benchmark(
    paths: Sequence[Path],
    how: How,
    wanted: Mapping[str, Wanted],
    batch_sizes: Sequence[int],
    mode: Mode,
    device: Device,
    progress: Progress,
    *,
    aa: bool = False,
    keep: Path | None = None,
) -> Benchmarked:
    """Measure ``paths`` beside the first of them; ``batch_sizes`` may be empty: the files', or ``wanted``'s, then.

    ``keep``: a folder for the raw samples.

    Raises ConfigError where a file cannot be had or run on the same inputs as the first, StageFailed where one
    crashes, EnvironmentMissing where runtime or device cannot be had.
    """
    names = distinct([str(path) for path in paths])
    givens = [open_given(path, name) for path, name in zip(paths, names, strict=True)]
    candidates = [candidate_of(given, how, device) for given in givens]
    sizes: list[int | None] = list(dict.fromkeys(batch_sizes)) or [None]
    feeds = [feed_for(givens, wanted, size) for size in sizes]  # all of them, before the first is measured
    settings = []
    for number, (feed, notes) in enumerate(feeds):

        def share(done: float, message: str, number: int = number) -> None:
            progress((number + done) / len(feeds), message)

        unchecked = checked_there(device, candidates, feed, lambda done, message: share(0.0, message))
        twice = aa or len(candidates) > 1
        place = None if keep is None else keep / f"batch{next(iter(feed.values())).shape[0]}"
        found = side_by_side(device, candidates, feed, MODES[mode], share, again=twice, keep=place)
        alike = cosines(device, candidates, feed, lambda done, message: share(1.0, "comparing the outputs"))
        shapes = {name: (str(array.dtype), array.shape) for name, array in feed.items()}
        settings.append(
            Setting(found.rows[0].measurement.batch_size, shapes, found, alike, (*notes, *unchecked))
        )
    return Benchmarked(tuple(givens), device.facts(), mode, tuple(settings), aa)
