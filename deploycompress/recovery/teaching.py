"""What a distillation is told in the configuration: losses, teachers, and a student of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Size
from deploycompress.config.references import LIBRARIES
from deploycompress.config.schema import Network
from deploycompress.config.wording import unknown
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.divergence import USUAL
from deploycompress.recovery.losses.weighted import Weighted, WeightedSum
from deploycompress.registry import LOSSES

WEIGHT = "weight"
ONNX = ".onnx"

NamedLoss = Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]  # name -> its arguments
LossEntry = str | NamedLoss
Teacher = str | Network
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Alpha = Annotated[float, Field(ge=0, le=1)]
DeviceName = Annotated[str, Field(pattern=r"^([0-9]{1,3}|cpu|mps)$")]  # an accelerator by its number


class Anneal(StrictModel):
    """Where alpha and temperature arrive at the last step, going there in equal steps."""

    alpha: Alpha | None = None
    temperature: Temperature | None = None


class Teaching(StrictModel):
    """The distillation's part of a stage's configuration."""

    loss: LossEntry | Annotated[tuple[LossEntry, ...], Field(min_length=1)] = (
        "kd"  # a name, {name: {weight: 1, ...}}, or a list of these: their sum
    )
    temperature: Temperature | None = Field(
        None,
        description="Of the losses that have one and are not given their own; 4 for up to 100 classes, else 1",
    )
    alpha: Alpha = 0.9  # weight of the teacher; the task's loss has the rest. 1: labels are not needed
    anneal: Anneal | None = None  # {alpha: 0.5, temperature: 1}: where they are at the end, from those above
    teacher: Teacher | Annotated[tuple[Teacher, ...], Field(min_length=1)] = (
        "original"  # or previous, mixed, a step, an .onnx file, {build, args, weights}, or a list of these
    )
    combine: Literal["mean", "confidence"] = "mean"  # of several teachers' answers
    teacher_memory: Literal["auto"] | Annotated[dict[DeviceName, Size], Field(min_length=1)] | None = Field(
        None,
        description="Of each device, for a teacher that does not fit one: {0: 20 GB, cpu: 60 GB}; the rest is read from "
        "disk. auto: half of what is free",
    )
    joint: bool = False  # the teacher learns too, from the labels and from the student
    student: Network | None = None  # starts another network, {build, args, weights}; its source teaches it
    inherit: bool = Field(
        False,
        description="The student starts with its source's weights where they fit; of more layers, evenly spread ones",
    )

    @model_validator(mode="before")
    @classmethod
    def _source_teaches(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("student") is not None and "teacher" not in data:
            return {**data, "teacher": "last"}
        return data

    @field_validator("loss")
    @classmethod
    def _losses_fit(cls, value: Any) -> Any:
        for name, arguments in _entries(value):
            _check_loss(name, arguments)
        return value

    @model_validator(mode="after")
    def _cools_from_somewhere(self) -> Teaching:
        if self.anneal is not None and self.anneal.temperature is not None and self.temperature is None:
            raise ValueError(
                "anneal.temperature: expected the temperature that it starts from, such as temperature: 4"
            )
        return self

    @model_validator(mode="after")
    def _inherits_once(self) -> Teaching:
        if self.inherit and self.student is None:
            raise ValueError("inherit: the source is the student already; expected a student: {build, args}")
        if self.inherit and self.student is not None and self.student.weights is not None:
            raise ValueError("inherit: the student has weights of its own; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _teachers_fit(self) -> Teaching:
        teachers = self.teachers()
        if self.teacher_memory is not None and (self.joint or all(map(_is_onnx, teachers))):
            raise ValueError(
                "teacher_memory: expected a network that only answers; one that is trained (joint) has to fit one device, "
                "and an ONNX file runs on the CPU"
            )
        if not self.joint:
            for teacher in teachers:
                if isinstance(teacher, Network):
                    _require_weights(teacher)
            return self
        final = self.anneal.alpha if self.anneal is not None and self.anneal.alpha is not None else self.alpha
        if self.alpha == 1 or final == 1:
            raise ValueError(
                "joint: two networks that only follow each other learn nothing; expected alpha below 1"
            )
        if len(teachers) > 1 or _is_onnx(teachers[0]):
            raise ValueError(
                "joint: expected one teacher that can be trained: a step, or {build, args, weights}"
            )
        return self

    def teachers(self) -> tuple[Teacher, ...]:
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)

    def networks(self) -> tuple[Network, ...]:
        """Every network besides the pipeline's own."""
        named = [self.student, *self.teachers()]
        return tuple(network for network in named if isinstance(network, Network))

    def open_loss(self) -> WeightedSum:
        """The losses with their weights. Raises ConfigError when one cannot be made."""
        parts: dict[str, Weighted] = {}
        for name, arguments in _entries(self.loss):
            make = LOSSES.load(name)
            given = dict(arguments)
            weight = float(given.pop(WEIGHT, getattr(make, WEIGHT, 1.0)))
            if "temperature" in inspect.signature(make).parameters:
                own = None if name in LOSSES else USUAL  # a user's loss has no other for many classes
                given.setdefault("temperature", own if self.temperature is None else self.temperature)
            try:
                loss = make(**given)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"distill.loss {name} could not be made: {error}") from error
            term = name.rpartition(":")[2]
            parts[term if term not in parts else f"{term}_{len(parts) + 1}"] = Weighted(loss, weight)
        return WeightedSum(parts, self.anneal.temperature if self.anneal is not None else None)


def _is_onnx(teacher: Teacher) -> bool:
    return isinstance(teacher, str) and teacher.endswith(ONNX)


def _require_weights(teacher: Network) -> None:
    """A user's function may load weights itself, and so may a library's when its arguments ask for it."""
    own = teacher.build.partition(":")[0] not in LIBRARIES or {"weights", "pretrained"} & teacher.args.keys()
    if teacher.weights is None and not own:
        raise ValueError(
            f"teacher: {teacher.build} has no weights, and what is not trained teaches nothing; expected weights: FILE, "
            "or joint: true"
        )


def _entries(loss: Any) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """(name, arguments) of every loss."""
    entries = loss if isinstance(loss, tuple) else (loss,)
    return tuple((e, {}) if isinstance(e, str) else next(iter(e.items())) for e in entries)


def _check_loss(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that a built-in does not take; a user's loss is asked when it is made."""
    weight = arguments.get(WEIGHT, 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ValueError(f"{name}: {WEIGHT} is {weight!r}; expected a number above 0")
    if name not in LOSSES:
        return
    make = LOSSES.load(name)
    given = {key: value for key, value in arguments.items() if key != WEIGHT}
    known = inspect.signature(make).parameters
    for key in given:
        if key not in known:
            raise ValueError(f"{name}: {unknown('argument', key, [*known, WEIGHT])}")
    try:
        make(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
