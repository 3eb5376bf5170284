"""The shape of pipeline.yaml: frozen models, one for each of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, SerializeAsAny, Tag, model_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.devices import DeviceConfig
from deploycompress.config.quantities import (
    Duration,
    Energy,
    Level,
    Points,
    Quantity,
    RemainingBytes,
    RemainingEnergy,
    Size,
)

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of a pipeline: also of its folder
STEP_ID = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}(@[0-9]{1,3})?$"  # also the name of its folder
COMPETITOR = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"  # also the name of its folder
DIMENSION = r"^[A-Za-z_][A-Za-z0-9_]*$"

OnInconclusive = Literal["fail", "warn", "extend"]
Dimension = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=DIMENSION)]


class InputSpec(StrictModel):
    """One named input; a dimension given by a name is dynamic."""

    shape: tuple[Dimension, ...] = Field(
        min_length=1, description="Sizes; a name is a dynamic dimension: [batch, 3, 224, 224]"
    )
    dtype: Literal["float32", "float16", "int64", "int32", "uint8", "bool"] = "float32"
    max: Annotated[int, Field(ge=1)] | None = Field(None, description="Token ids are below it")


class Network(StrictModel):
    """A network by the function that builds it."""

    build: str = Field(
        description="module:function or path/to/file.py:function; also torchvision:resnet18, timm:NAME"
    )
    args: dict[str, Any] = Field({}, description="Keyword arguments of the function")
    weights: Path | None = Field(
        None, description="A .safetensors file or a state_dict (.pt .pth .th); null: a train stage makes them"
    )


def _onnx_file(file: Path) -> Path:
    if file.suffix != ".onnx":
        raise ValueError("expected a file ending in .onnx, or {build, args, weights}")
    return file


# A network or an ONNX file; which of them is meant decides what is said of a mistake in it.
NetworkOrFile = Annotated[
    Annotated[Network, Tag("network")] | Annotated[Path, AfterValidator(_onnx_file), Tag("file")],
    Discriminator(lambda given: "network" if isinstance(given, (dict, Network)) else "file"),
]


class ModelConfig(Network):
    """Where the user's model comes from, by name."""

    expect: Annotated[
        dict[str, Level],
        Field(description="What the weights reach on the validation split, checked first: {accuracy: 93.4%}"),
    ] = {}
    tolerance: Annotated[
        Points | None,
        Field(description="Of expect, besides the sampling error; 1 pp of a share, 5% of another figure"),
    ] = None
    inputs: dict[str, InputSpec] = Field(
        min_length=1, description="Inputs by name: {image: {shape: [batch, 3, 224, 224]}}"
    )
    timeout: Annotated[
        Duration | None,
        Field(description="Ends the step that builds the model and reads the data with exit code 4: 10 min"),
    ] = None


class DataConfig(StrictModel):
    """What every data source takes; a built-in's own ``Config`` adds its keys."""

    source: str = Field(description="A built-in, or module:function")
    root: Path | None = Field(None, description="The folder the data lies in")
    args: dict[str, Any] = Field({}, description="Keyword arguments of a module:function")
    version: str | None = Field(
        None, description="Of a module:function without a fingerprint: change it when the data change"
    )
    batch_size: Annotated[int, Field(ge=1)] = 64
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of train that is held out, where the source has no validation split"
    )
    test: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of train that is held out as the test split, where the source has none"
    )
    allow_missing_classes: bool = Field(
        False, description="Whether val and test may lack classes that train has"
    )
    calibration: Annotated[int, Field(ge=1)] = Field(512, description="Samples of train for calibration")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a raw sample goes through before the network reads it, as JSON; empty where it is read as it is."""
        return {}


class OpenDataConfig(DataConfig):
    """The configuration of a user's data source that was located and not imported: any key."""

    model_config = ConfigDict(extra="allow")


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


class StepOptions(StrictModel):
    """What every step takes beside its stage's own configuration."""

    id: Annotated[str, Field(pattern=STEP_ID)] | None = Field(
        None, description="Names the step; the stage's name where none is given"
    )
    source: str | None = Field(
        None, alias="from", description="A step id, original, baseline or a file; else what comes before"
    )
    timeout: Duration | None = Field(None, description="Ends the step with exit code 4: 30 min")
    back_off: Points | None = Field(
        None, description="Of a round of a repeat, which sets it: the most that the metric may drop"
    )


class BackOff(StrictModel):
    """A round after which the primary metric on the validation split is too low is undone and halved."""

    max_drop: Points = Field(description="Below the model before the first round: 2 pp")


class Repeat(StrictModel):
    """The same stages several times, each round a step nearer to the target."""

    repeat: Annotated[int, Field(strict=True, ge=1, le=100)] = Field(description="How many rounds")
    stages: list[Any] = Field(min_length=1, description="Steps, as in the list around this one")
    schedule: Literal["linear", "exponential"] = Field(
        "exponential", description="How the remaining share goes from 100% to the target"
    )
    back_off: BackOff | None = Field(
        None, description="Undo a round that costs too much, and try half of its step: {max_drop: 2 pp}"
    )


class OpenConfig(StrictModel):
    """The configuration of a user's stage that was located and not imported: any key."""

    model_config = ConfigDict(extra="allow")


class StepConfig(StrictModel):
    """One step: a stage, its own strict configuration, and where its source comes from."""

    stage: str
    id: str
    source: str | None = None  # ``from`` in YAML: a step id, original, baseline or a file
    timeout: Duration | None = None
    back_off: Points | None = None
    config: SerializeAsAny[StrictModel]


class Gate(StrictModel):
    on_inconclusive: OnInconclusive = "fail"


class AccuracyGate(Gate):
    """On a task metric: at least ``min``, or at most so much worse than the baseline's."""

    min: Level | None = None
    max: Level | None = None
    max_drop: Points | None = Field(None, description="Of a metric that is better the higher it is: 1 pp")
    max_rise: Points | None = Field(
        None, description="Of one that is better the lower it is, an error: 2 pp, or 0.1"
    )

    @property
    def max_loss(self) -> Quantity | None:
        """How much worse it may get, whichever way that is."""
        return self.max_drop or self.max_rise

    @model_validator(mode="after")
    def _gets_worse_one_way(self) -> AccuracyGate:
        if self.max_drop is not None and self.max_rise is not None:
            raise ValueError("a metric gets worse by a drop or by a rise; expected max_drop or max_rise")
        return self


class LatencyGate(Gate):
    max: Duration | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None


class ThroughputGate(Gate):
    min: Annotated[float, Field(gt=0)]  # inferences per second


class SizeGate(Gate):
    max: Size | None = None
    max_ratio: RemainingBytes | None = None


class EnergyGate(Gate):
    """On the energy of one inference, where the device has a counter of it."""

    max: Energy | None = None
    max_ratio: RemainingEnergy | None = None


class PlacementGate(Gate):
    """No operator falls back to another provider or a reference kernel; with ``allow: []`` none only reformats either."""

    allow: tuple[str, ...] = Field(
        description="Exceptions: a role (fallback, reformat), an operator (ReorderInput) or a provider",
    )


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
    "energy": EnergyGate,
    "placement": PlacementGate,
}


class PipelineConfig(StrictModel):
    """A whole pipeline.yaml: defaults filled in, ``repeat`` expanded, paths absolute.

    Made by ``config.reader.read``; reading its own ``config.yaml`` back gives an equal one.
    """

    name: Annotated[str, Field(pattern=NAME)] = Field(
        description="The name of the pipeline and of its run directory"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelConfig = Field(description="{build: module:function, inputs: {...}}")
    task: TaskConfig = TaskConfig()
    data: SerializeAsAny[DataConfig] = Field(description="{source: digits}, or {source: module:function}")
    target: TargetConfig = TargetConfig()
    stages: tuple[StepConfig, ...] = Field(min_length=1, description="A list such as [train, prune, export]")
    gates: dict[str, SerializeAsAny[Gate]] = {}
    # Not of pipeline.yaml, but of the file of devices beside it.
    devices: dict[str, SerializeAsAny[DeviceConfig]] = Field({}, exclude=True)
