"""The shape of pipeline.yaml: frozen models, one for each of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Duration, Level, Points, RemainingBytes, Size

OnInconclusive = Literal["fail", "warn", "extend"]
Dimension = Annotated[int, Field(ge=1)] | str


class InputSpec(StrictModel):
    """One named input; a dimension given by a name is dynamic."""

    shape: tuple[Dimension, ...]
    dtype: Literal["float32", "float16", "int64", "int32", "uint8", "bool"] = "float32"
    max: Annotated[int, Field(ge=1)] | None = None  # token ids are below it


class ModelConfig(StrictModel):
    """Where the user's model comes from, by name."""

    build: str
    args: dict[str, Any] = {}
    weights: Path | None = None
    inputs: dict[str, InputSpec] = Field(min_length=1)


class DataConfig(StrictModel):
    """What every data source takes; a built-in's own ``Config`` adds its keys."""

    source: str
    root: Path | None = None
    args: dict[str, Any] = {}  # of a ``module:function``
    version: str | None = None  # of a ``module:function`` without a ``fingerprint``
    batch_size: Annotated[int, Field(ge=1)] = 64
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of train, where no split is given
    calibration: Annotated[int, Field(ge=1)] = 512  # samples


class TaskConfig(StrictModel):
    """What a batch, a loss and a metric are; ``task: classification`` or ``task: {name: ..., ...}``."""

    name: str = "classification"
    args: dict[str, Any] = {}


class TargetConfig(StrictModel):
    """What prune, quantize, compile and the gates mean by latency."""

    device: str = "local"
    runtime: str = "onnxruntime"
    provider: str = "cpu"
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    threads: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 1


class StepConfig(StrictModel):
    """One step: a stage, its own strict configuration, and where its source comes from."""

    stage: str
    id: str
    source: str | None = None  # ``from`` in YAML: a step id, original, baseline or a file
    timeout: Duration | None = None
    config: SerializeAsAny[StrictModel]


class Gate(StrictModel):
    on_inconclusive: OnInconclusive = "fail"


class AccuracyGate(Gate):
    """On a task metric: at least ``min``, at most ``max_drop`` below the baseline's."""

    min: Level | None = None
    max: Level | None = None
    max_drop: Points | None = None


class LatencyGate(Gate):
    max: Duration | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None


class ThroughputGate(Gate):
    min: Annotated[float, Field(gt=0)]  # inferences per second


class SizeGate(Gate):
    max: Size | None = None
    max_ratio: RemainingBytes | None = None


class PlacementGate(Gate):
    allow: tuple[str, ...]


GATES: dict[str, type[Gate]] = {
    "accuracy": AccuracyGate,
    "worst_class": AccuracyGate,
    "latency_p50": LatencyGate,
    "latency_p90": LatencyGate,
    "latency_p99": LatencyGate,
    "throughput": ThroughputGate,
    "artifact_size": SizeGate,
    "packed_size": SizeGate,
    "peak_memory": SizeGate,
    "energy": SizeGate,
    "placement": PlacementGate,
}


class PipelineConfig(StrictModel):
    """A whole pipeline.yaml: defaults filled in, ``repeat`` expanded, paths absolute.

    Made by ``config.reader.read``; reading its own ``config.yaml`` back gives an equal one.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelConfig
    task: TaskConfig = TaskConfig()
    data: SerializeAsAny[DataConfig]
    target: TargetConfig = TargetConfig()
    stages: tuple[StepConfig, ...] = Field(min_length=1)
    gates: dict[str, SerializeAsAny[Gate]] = {}
