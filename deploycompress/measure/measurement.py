"""The record of one artefact measured on one device in one runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SMEARED = "the energy of the GPU is not told"  # how a note of it begins


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference; a percentile is None where too few samples support it."""

    p50: float
    p90: float | None
    p99: float | None
    mean: float
    samples: int
    seconds: float  # time spent in the timed calls


@dataclass(frozen=True)
class Speedup:
    """Baseline over candidate, median of paired block ratios, with its bootstrap interval (95 %)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One row of the benchmark: an artefact, a runtime configuration and a device."""

    artifact: str  # artefact id
    runtime: str
    device: str
    provider: str
    precision: str
    threads: int
    batch_size: int
    latency_ms: Latency
    speedup: Speedup | None = None  # over the baseline in the same runtime; None for that one itself
    speedup_vs_target: Speedup | None = (
        None  # over the baseline in the target's runtime, where that is another
    )
    peak_memory_bytes: int | None = None  # of the host's memory, by the whole process
    gpu_memory_bytes: int | None = None  # of all GPUs, by the process once it is warm
    energy_mj: float | None = None  # of one inference, by counters that see the whole chip
    energy_of: tuple[str, ...] = ()  # what they count: package-0, gpu-0
    load_ms: float | None = None
    first_inference_ms: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # the task's metrics on the test split
    samples: str | None = None  # file with the raw samples (ns), relative to the step's folder
    noise_floor: float | None = None  # share by which the baseline differed from itself beside this one
    at_target: bool = True  # False: with one thing of the target changed
    emulated: bool = False  # another processor played the device's: no time of it means anything
    disturbed: bool = False  # too many rounds were: the times are shown, and decide nothing
    intervals: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # of latency_ms (95 %), by name
    ratios: Mapping[str, Speedup] = field(
        default_factory=dict
    )  # p90, p99, mean: as speedup_vs_target or speedup
    energy_ratio: float | None = None  # to the baseline's in the same job, by the same counters
    notes: tuple[str, ...] = ()  # disturbed rounds, an unsteady warm-up

    @property
    def doubtful(self) -> bool:
        """Whether its times decide nothing."""
        return self.disturbed or self.emulated

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"notes": list(self.notes), "energy_of": list(self.energy_of)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Measurement:
        speedups = {
            name: None if document.get(name) is None else Speedup(**document[name])
            for name in ("speedup", "speedup_vs_target")
        }
        tuples = {name: tuple(document.get(name, ())) for name in ("notes", "energy_of")}
        by_name = {
            "intervals": {name: tuple(of) for name, of in document.get("intervals", {}).items()},
            "ratios": {name: Speedup(**of) for name, of in document.get("ratios", {}).items()},
        }
        latency = {"latency_ms": Latency(**document["latency_ms"])}
        return cls(**{**document, **speedups, **tuples, **by_name, **latency})
