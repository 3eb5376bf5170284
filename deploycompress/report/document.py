"""What report.json holds, checked as it is read: a report may come from another machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploycompress.errors import ConfigError
from deploycompress.report.figures import clean, clean_lines

MOST_BYTES = 64 * 2**20

Text = Annotated[str, AfterValidator(clean)]
Lines = Annotated[str, AfterValidator(clean_lines)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Part(BaseModel):
    """Frozen; a key that a newer version added is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Note(Part):
    kind: Text
    message: Text
    subject: Text = ""


class Failure(Part):
    step: Text = ""
    class_: Annotated[Text, Field(alias="class")] = ""
    message: Lines
    exit_code: int = 1


class Stage(Part):
    name: Text
    kind: Text
    seconds: float
    reused: bool
    metrics: dict[Text, float] = {}
    notes: tuple[Note, ...] = ()
    state: Literal["done", "failed", "not_run"] = "done"
    parity: dict[Text, float] = {}
    error: Failure | None = None


class Artefact(Part):
    id: Text
    kind: Text
    path: Text  # relative to the run directory
    sha256: Text
    bytes: Count
    stage: Text
    precision: Text
    metrics: dict[Text, float] = {}


class Latency(Part):
    """Milliseconds of one inference; a percentile is null where too few samples support it."""

    p50: float
    p90: float | None
    p99: float | None
    mean: float
    samples: Count
    seconds: float


class Speedup(Part):
    value: float
    low: float
    high: float


class Distribution(Part):
    """Which share of the calls took at most how many milliseconds; null where too few samples tell."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    ms: tuple[float | None, ...]

    @model_validator(mode="after")
    def _fits(self) -> Distribution:
        known = [value for value in self.ms if value is not None]
        if len(self.shares) != len(self.ms) or list(self.shares) != sorted(self.shares):
            raise ValueError("as many milliseconds as shares, and both from the smallest on, were expected")
        if known != sorted(known) or any(value <= 0 for value in known):
            raise ValueError("milliseconds above 0 that grow with the share were expected")
        return self


class Row(Part):
    """One artefact measured in one configuration."""

    artifact: Text
    runtime: Text
    device: Text
    threads: int
    batch_size: int
    latency_ms: Latency
    speedup: Speedup | None = None
    speedup_vs_target: Speedup | None = None
    peak_memory_bytes: Count | None = None
    gpu_memory_bytes: Count | None = None
    energy_mj: float | None = None
    energy_of: tuple[Text, ...] = ()
    load_ms: float | None = None
    first_inference_ms: float | None = None
    provider: Text = ""
    precision: Text = ""
    metrics: dict[Text, float] = {}
    notes: tuple[Text, ...] = ()
    at_target: bool = True
    emulated: bool = False
    disturbed: bool = False
    noise_floor: float | None = None
    distribution: Distribution | None = None

    @property
    def gain(self) -> Speedup | None:
        """Over the baseline at the target, which is what an artefact of another runtime replaces as well."""
        return self.speedup_vs_target or self.speedup


class Tried(Part):
    """A candidate that ``compile`` looked at; ``reason``: why it was not kept, empty where it was."""

    recipe: Text
    threads: int
    metric: float | None = None
    loss: float | None = None  # of the primary metric against the stage's source, on the validation split
    cosine: float | None = None
    p50_ms: float | None = None
    speedup: Speedup | None = None  # over the source
    reason: Text = ""


class Operator(Part):
    """Where one operator of an artefact runs, and its median time in an inference."""

    node: Text
    op: Text
    provider: Text
    precision: Text
    role: Text = ""  # fallback, reformat, or empty
    ms: float
    layer: Text = ""  # of the network; empty where that is not known


class Gate(Part):
    """One limit, judged; ``limit`` and ``value`` in the base unit of ``unit``: 0.01 of "points" is 1 pp."""

    metric: Text
    limit: float | None
    value: float | None
    verdict: Literal["pass", "fail", "inconclusive"]
    bound: Text = ""
    unit: Text = ""
    message: Text = ""
    only_warns: bool = False
    low: float | None = None
    high: float | None = None


class Best(Part):
    artifact: Text
    runtime: Text


class Metric(Part):
    name: Text = "accuracy"
    higher_is_better: bool = True
    unit: Text = "share"

    @property
    def change_unit(self) -> str:
        """The unit of a change: points where the metric is a share."""
        return "points" if self.unit == "share" else self.unit


class Difference(Part):
    """Artefact minus baseline on the same ``samples`` of the test split, with its 95 % interval."""

    value: float
    low: float
    high: float
    samples: Count


class Interval(Part):
    """Where 95 % of such samples would put a figure."""

    low: float
    high: float
    samples: Count


class Milestone(Part):
    """A measured artefact on the way to the best one, and the steps since the one before."""

    steps: tuple[Text, ...]
    artifact: Text
    latency_ms: float
    metric: float | None
    bytes: Count


class Validated(Part):
    step: Text
    value: float


class Width(Part):
    layer: Text
    before: Count
    after: Count


class Shipped(Part):
    artifact: Text
    file: Text  # below artifacts/


class Input(Part):
    shape: tuple[int | Text, ...]
    dtype: Text = "float32"


class Model(Part):
    build: Text = ""
    inputs: dict[Text, Input] = {}


class Data(Part):
    source: Text = ""
    test_samples: Count | None = None


class Target(Part):
    device: Text = ""
    runtime: Text = ""
    provider: Text = ""
    threads: int = 1
    batch_size: int = 1


class Earlier(Part):
    """An earlier run of the same name: the figures of its best artefact at its target."""

    started: Text
    verdict: Literal["pass", "fail", "inconclusive", "error"]
    best: Text | None = None
    p50_ms: float | None = None
    speedup: Speedup | None = None
    metric: float | None = None
    bytes: Count | None = None
    target: Target = Target()
    machine: tuple[Text, ...] = ()  # what it differs in from this run's; empty where it is the same


class Report(Part):
    """The whole document. What has no default is relied upon by tools outside this repository."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Text
    verdict: Literal["pass", "fail", "inconclusive", "error"]
    exit_code: int
    stages: tuple[Stage, ...]
    artifacts: tuple[Artefact, ...]
    measurements: tuple[Row, ...]
    gates: tuple[Gate, ...]
    best: Best | None
    environment: dict[Text, Any]
    error: Failure | None = None
    started: Text = ""
    seconds: float = 0.0
    command: Text = ""
    model: Model = Model()
    data: Data = Data()
    target: Target = Target()
    primary: Metric = Metric()
    figures: dict[Text, Metric] = {}
    competitors: tuple[Text, ...] = ()  # ids of artefacts that this run did not make: none is the best one
    by_class: dict[Text, dict[Text, dict[Text, float]]] = {}  # artefact -> figure -> class -> value
    baseline: Text | None = None
    differences: dict[Text, Difference] = {}
    intervals: dict[Text, Interval] = {}  # of the primary metric, by artefact
    waterfall: tuple[Milestone, ...] = ()
    validation: tuple[Validated, ...] = ()
    widths: tuple[Width, ...] = ()
    ships: tuple[Shipped, ...] = ()
    tried: tuple[Tried, ...] = ()
    placement: dict[Text, tuple[Operator, ...]] = {}  # by artefact
    history: tuple[Earlier, ...] = ()  # the oldest first, without this run

    def row(self, artifact: str | None) -> Row | None:
        """The artefact's measurement at the target."""
        return next((r for r in self.measurements if r.at_target and r.artifact == artifact), None)

    def artefact(self, id: str | None) -> Artefact | None:
        return next((a for a in self.artifacts if a.id == id), None)

    def standing(self, artifact: str) -> Literal["baseline", "best", "competitor", "other"]:
        """What an artefact is to this run."""
        if artifact == self.best_id:
            return "best"
        if artifact == self.baseline:
            return "baseline"
        return "competitor" if artifact in self.competitors else "other"

    @property
    def best_id(self) -> str | None:
        return None if self.best is None else self.best.artifact

    @property
    def change_unit(self) -> str:
        """The unit of a change of the primary metric."""
        return self.primary.change_unit

    def change(self, row: Row) -> float | None:
        """Of the primary metric against the baseline: from paired scores, else from the two figures."""
        paired = self.differences.get(row.artifact)
        if paired is not None:
            return paired.value
        base = self.row(self.baseline)
        ours = row.metrics.get(self.primary.name)
        theirs = None if base is None else base.metrics.get(self.primary.name)
        return None if ours is None or theirs is None else ours - theirs


def check(document: Mapping[str, Any]) -> Report:
    """The document as a Report. Raises ConfigError that names the first place that does not fit."""
    try:
        return Report.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = clean(".".join(map(str, first["loc"]))) or "the top level"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"not a report of this version: {place}: {first['msg']}{more}") from error


def read(path: Path) -> dict[str, Any]:
    """A report.json from disk, checked. Raises ConfigError with what is wrong and what to do."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        if not isinstance(document, dict):
            raise ValueError(f"it holds a {type(document).__name__}, not an object")
        check(document)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; expected the directory of a finished run") from error
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"{path} cannot be read as a report: {reason}; run the pipeline again to make a new one"
        ) from error
    return document


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
