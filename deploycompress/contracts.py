"""What stages, criteria, allocations, losses, runtimes and devices promise to the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from deploycompress.artifact import Artifact, Kind
from deploycompress.config.base import StrictModel
from deploycompress.config.devices import Devices
from deploycompress.config.schema import Gate, InputSpec, Network, TargetConfig
from deploycompress.measure.measurement import Measurement

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Split = Literal["train", "val", "test", "calibration"]
Ref = str  # "last", "original", "baseline", "all", a step id, or a file


# ---------------------------------------------------------------- what steps say


@dataclass(frozen=True)
class Note:
    """Something the reader of the report must know: what was skipped, fell back or was left whole, and why."""

    kind: Literal["skipped", "fell_back", "left_whole", "warning", "decision"]
    message: str
    subject: str = ""  # a layer, a node, a file


@dataclass(frozen=True)
class Event:
    """One line of progress: what happened in ``message``, its numbers in ``figures``, by names that tell the unit.

    Progress without figures only moves a live display; everything else is also a line in the log of a CI job.
    """

    kind: Literal["progress", "decision", "warning", "parity"]
    message: str
    figures: Mapping[str, float] = field(default_factory=dict)
    done: float | None = None  # share of the step that is done, 0..1
    step: str = ""  # filled in by the engine


@dataclass(frozen=True)
class Outcome:
    """What a stage's ``run`` gives back; all of it goes into the step's manifest."""

    artifacts: tuple[
        Artifact, ...
    ] = ()  # best first; empty: nothing new, the next step reads this step's source
    metrics: Mapping[str, float] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    notes: tuple[Note, ...] = ()
    details: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON for the report: widths, placement, evaluations


# ---------------------------------------------------------------- what a model, data and a task are


@dataclass(frozen=True)
class Batch:
    """Samples by input name, with what is known of them; the first dimension is the batch everywhere."""

    inputs: Mapping[str, Tensor]
    targets: Any = None  # a tensor, or what the task defines; None where there are no labels
    size: int = 0

    def to(self, device: Any) -> Batch:
        def move(value: Any) -> Any:
            if hasattr(value, "to"):
                return value.to(device)
            if isinstance(value, Mapping):
                return {k: move(v) for k, v in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(move(v) for v in value)
            return value

        return Batch(move(self.inputs), move(self.targets), self.size)

    def rows(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop``; in a dict, each value is cut along its first dimension."""

        def cut(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: cut(v) for k, v in value.items()}
            return value[start:stop] if hasattr(value, "__getitem__") else value

        return Batch(cut(self.inputs), cut(self.targets), max(0, min(self.size, stop) - start))


@dataclass(frozen=True)
class Outputs:
    """A model's outputs by name, and the features that were asked for by module path."""

    tensors: Mapping[str, Tensor]
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def main(self) -> Tensor:
        """The first output: logits for most tasks."""
        return next(iter(self.tensors.values()))


class Loader(Protocol):
    """Batches of one split, in one fixed order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


class Model(Protocol):
    """The user's model, by name."""

    @property
    def inputs(self) -> Mapping[str, InputSpec]: ...
    @property
    def digest(self) -> str: ...
    @property
    def recipe(self) -> Mapping[str, Any]:
        """As JSON, by which another process makes the network of a checkpoint: the ``network`` of runtime pytorch."""
        ...

    def build(self) -> nn.Module:
        """A fresh untrained model in evaluation mode; the same weights every time (seeded)."""
        ...

    def example(self, batch_size: int) -> dict[str, Tensor]:
        """Random inputs by name that fit the declared shapes; the same every time."""
        ...

    def call(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run ``module`` on named inputs; the outputs by name."""
        ...

    def other(self, network: Network) -> Model:
        """Another network that reads the same inputs; its checkpoints load with this model from then on."""
        ...

    def named(self, name: str) -> Model:
        """The one whose checkpoints bear ``name``; "" is this model. Raises StageFailed for one that is not known."""
        ...


class Data(Protocol):
    """The user's data; a split is opened on first use."""

    @property
    def digest(self) -> str: ...
    @property
    def interface(self) -> Mapping[str, Any]:
        """What whoever runs the model has to know, as JSON: ``labels``, ``preprocessing``; what of it is known."""
        ...

    def loader(self, split: Split, epoch: int | None = None) -> Loader:
        """``epoch`` given: shuffled and augmented for that epoch of training. Otherwise: in order, as in use."""
        ...


@dataclass(frozen=True)
class MetricInfo:
    name: str
    higher_is_better: bool
    unit: str  # "share" (printed in % and pp) or "" for a plain number


class Metrics(Protocol):
    """Figures over a split; one object for one pass."""

    def update(self, outputs: Outputs, batch: Batch) -> None: ...
    def compute(self) -> dict[str, float]:
        """Figures by name; one that these samples do not define (no sample of a class) is left out."""
        ...

    def scores(self) -> np.ndarray | None:
        """One number a sample, in order, whose mean is the primary metric; None where there is none."""
        ...


@runtime_checkable
class ClassMetrics(Protocol):
    """Metrics that also tell the classes apart."""

    def by_class(self) -> dict[str, dict[str, float]]:
        """Figure -> class -> value; the first figure is the one whose worst class a gate guards."""
        ...


class Task(Protocol):
    """What a batch, a loss and a metric are.

    One with an attribute ``figures`` (name -> MetricInfo) says what its metrics give, and which way each is better:
    then a name that it does not give is refused before anything runs. One with ``targets_are_classes`` that is false
    has numbers for targets, also where they are whole: nothing looks for their classes then. ``aspects`` says which of
    the outputs it judges (``data.tasks.aspects``), for the losses between two networks; without it the first one.
    """

    @property
    def primary(self) -> MetricInfo: ...
    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Raises ConfigError when this batch and these outputs do not fit the task."""
        ...

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor: ...
    def metrics(self) -> Metrics: ...


def figures_of(task: Task) -> dict[str, MetricInfo]:
    """What is known of the task's metrics by name: all that it tells of, and always the primary one."""
    told: Mapping[str, MetricInfo] = getattr(task, "figures", {})
    return {**told, task.primary.name: task.primary}


def targets_are_classes(task: Task) -> bool:
    """Whether whole numbers among the targets are the numbers of classes."""
    return bool(getattr(task, "targets_are_classes", True))


# ---------------------------------------------------------------- what a stage is


class Store(Protocol):
    """What a stage may keep between runs."""

    def folder(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that ``make`` once filled for this ``key``; made now where it is missing."""
        ...

    def checkpoints(self, step: str) -> Path:
        """Where an unfinished step keeps its progress; emptied when the step is published."""
        ...


@dataclass(frozen=True)
class RunContext:
    """Everything a stage may ask about the run; rebuilt in the step's process from config.yaml."""

    model: Model
    data: Data
    task: Task
    target: TargetConfig
    gates: Mapping[str, Gate]
    store: Store
    seed: int
    rehearsal: bool  # the chain with untrained weights and a few inputs: train nothing, measure little
    emit: Callable[[Event], None]
    stopping: Callable[[], bool]  # true after SIGINT or SIGTERM: save and leave
    step: str = ""  # digest of the step's key, for ``store.checkpoints``; empty where nothing is kept
    devices: Devices = field(default_factory=Devices)  # what a device's name means


Inputs = Mapping[str, tuple[Artifact, ...]]


class Stage(ABC):
    """Reads artefacts, writes new ones into the folder it is given, never edits its source."""

    accepts: ClassVar[frozenset[Kind]]
    produces: ClassVar[frozenset[Kind]]  # empty: passes its source on (benchmark)
    version: ClassVar[int] = 1  # raised by hand when the same configuration gives another result
    libraries: ClassVar[tuple[str, ...]] = ()  # distributions whose versions are part of the key
    compresses: bool = False  # the baseline is taken before the first such step
    reusable: ClassVar[bool] = True  # False: a measurement, made again in every run
    # Options that leave the result as it is, in the form of pydantic's ``exclude``; the key does without them.
    incidental: ClassVar[Mapping[str, Any]] = {}

    class Config(StrictModel):
        pass

    def __init__(self, config: Any) -> None:
        self.config = config

    def inputs(self) -> Mapping[str, Ref]:
        """What the stage reads; ``from`` in YAML replaces "last"."""
        return {"source": "last"}

    def opens(self, target: TargetConfig) -> frozenset[str]:
        """Of the kinds that it accepts, those that it has a use for at this target."""
        return self.accepts

    def makes(self, target: TargetConfig) -> frozenset[str]:
        """Of the kinds that it produces, those that it may make at this target."""
        return self.produces

    def reads(self) -> frozenset[str]:
        """Which of "target" and "gates" the result depends on."""
        return frozenset()

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        """Facts outside the configuration that the result depends on, as JSON for the key.

        A processor's features, whether a GPU is there. Like ``requires``, it must not import a framework.
        """
        return {}

    def requires(self, context: RunContext) -> None:  # noqa: B027
        """Libraries, devices, files: asked of every step before the first one runs, sees no artefact.

        Raises EnvironmentMissing or ConfigError. Must not import a framework: it runs in the main process.
        """

    def inexact(self, context: RunContext) -> str | None:
        """Why the same key may give other bytes on the same machine; None where a CPU gives the same ones."""
        return None

    @abstractmethod
    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome: ...

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """Parity with the source, as figures for the manifest. Raises StageFailed."""
        return {}


# ---------------------------------------------------------------- what can be added


class Group(Protocol):
    """Channels that can only be removed together: one vector of ``width`` gates."""

    @property
    def id(self) -> str: ...
    @property
    def width(self) -> int: ...


class Criterion(Protocol):
    """Importance of every channel; ``comparable`` when scores of different groups share one unit (loss)."""

    comparable: ClassVar[bool]
    needs_data: ClassVar[bool]

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[Any],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        """Group id -> float64 scores of shape [width]."""
        ...


class Allocation(Protocol):
    """How many channels each group keeps, so that the cost meets the budget.

    One with an attribute ``removes_blocks`` that is true adds losses up: it is given scores in units of the loss (what
    pruning each group alone costs), and ``blocks`` by keyword, where there are any, each with its loss among the
    scores; it says 0 or 1 for each, and 0 for the groups inside those that go.
    """

    def __call__(
        self, groups: Sequence[Any], scores: Mapping[str, Tensor], costs: Any, budget: Any
    ) -> Mapping[str, int]:
        """Group id -> width kept, on the group's aligned grid."""
        ...


class Loss(Protocol):
    """What a student is to learn from a teacher's answer.

    ``alpha`` and the labels' part are the distillation's, not a loss's. One that takes ``temperature`` is given it,
    and 4 where the configuration has none. It may have ``attach`` and ``trainable`` where it reads features
    (``recovery.layers.FeatureLoss``); ``progress(done)``, told the share of the training that is done; ``weight``, what
    it counts where the configuration does not say; and ``class_axis``, which makes it one of a single output: it is asked for each one that the task judges, shown as the
    first. That is the dimension in which it takes classes that exclude each other, or None for outputs of any kind. A
    loss without it is asked once, with all outputs. ``reads_labels``: it takes the right class by itself.
    """

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor: ...


@runtime_checkable
class Session(Protocol):
    """One loaded artefact. ``bind`` prepares a feed; the call it gives back is what is timed.

    The call keeps the session, and what is bound, alive: it may be all that its user holds. A session behind a program
    in a process of its own also has ``timed(budget_ns, least, enough)``, in which that program times its calls:
    nanoseconds of each, for as long as ``devices.candidate.timed_calls`` says; where it warms up by itself before that,
    ``warms_up`` is true.
    """

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """By name; None where the runtime does not tell, and takes what it is fed."""
        ...

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]: ...
    def fetch(self) -> Mapping[str, np.ndarray]: ...


class Runtime(Protocol):
    accepts: ClassVar[frozenset[str]]  # kinds of artefact it opens

    def missing(self) -> str | None:
        """Why it cannot run here, with what to do; None when it can."""
        ...

    def open(self, path: Path, options: Mapping[str, Any]) -> AbstractContextManager[Session]: ...

    # One that tells what single operators take also has ``profile``: see ``runtimes.onnxruntime.OnnxRuntime``.


class Device(Protocol):
    """Where artefacts run: files are pushed, a job is started, polled, and its results pulled."""

    def facts(self) -> Mapping[str, Any]: ...
    def missing(self, runtime: str) -> str | None:
        """Why artefacts of that runtime cannot be run there, with what to do; None when they can."""
        ...

    def push(self, files: Mapping[str, Path]) -> None: ...
    def start(self, job: Mapping[str, Any]) -> str: ...
    def poll(self, id: str) -> Mapping[str, Any]:
        """``state`` (running, ended), ``done`` (a share) and ``message``, at once when it has ended.

        Else it waits for a moment, of half a second at most, in which what is measured has the processor.
        """
        ...

    def pull(self, id: str) -> Mapping[str, Any]: ...
    def collect(self, id: str, files: Mapping[str, Path]) -> None:
        """Bring files of an ended job here: name in its folder -> place."""
        ...

    def stop(self, id: str) -> None:
        """End a job, if it still runs, and take its files away."""
        ...
