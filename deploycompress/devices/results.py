"""Reads what a device sent back, as one reads anything from outside: nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploycompress.devices.runner import SCHEMA
from deploycompress.errors import EnvironmentMissing

F = TypeVar("F", bound=BaseModel)

LONGEST_NS = 10**13  # of one call: almost three hours


@dataclass(frozen=True)
class Timing:
    """One candidate's raw figures."""

    blocks_ns: tuple[tuple[int, ...], ...]
    load_ms: float
    first_inference_ms: float
    peak_memory_bytes: int | None
    steady: bool
    finite: bool  # its outputs of the first inference
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Failed:
    """Why a candidate has no figures; the kinds are those of ``candidate.Failure``."""

    kind: str
    message: str


@dataclass(frozen=True)
class OperatorProfile:
    """One operator of an artefact, as the runtime has it after its own optimisation."""

    op: str  # its type
    provider: str  # or the kernel, where the runtime tells that
    precision: str
    role: str  # "fallback", "reformat", or empty: it computes where it was meant to
    ns: tuple[int, ...]  # of each inference


@dataclass(frozen=True)
class State:
    """The machine between two blocks; None where it does not tell."""

    time_s: float
    load: float | None
    mhz: float | None
    celsius: float | None
    throttled_us: int | None
    stolen_ticks: int | None


@dataclass(frozen=True)
class Result:
    candidates: Mapping[str, Timing | Failed]
    states: tuple[State, ...]


def read_result(document: Mapping[str, Any], job: Mapping[str, Any], device: str) -> Result:
    """Check a result against the job it answers. Raises EnvironmentMissing when it is not one.

    A job that could not be run at all (device busy, files damaged on the way) is raised as well.
    """
    read = _checked(document, job, device)
    states = tuple(State(**state.model_dump()) for state in read.blocks)
    entries = {id: _entry(entry, job["blocks"], id, device) for id, entry in read.candidates.items()}
    return Result(entries, states)


def read_profile(
    document: Mapping[str, Any], job: Mapping[str, Any], device: str
) -> Mapping[str, Mapping[str, OperatorProfile] | Failed]:
    """Of a profiling job: candidate -> operators by name. Checked and raised as ``read_result`` does."""
    entries = _checked(document, job, device).candidates
    return {
        id: Failed(entry.error.kind, entry.error.message)
        if entry.error is not None
        else {
            name: OperatorProfile(of.op, of.provider, of.precision, of.role, tuple(of.ns))
            for name, of in entry.operators.items()
        }
        for id, entry in entries.items()
    }


def read_answers(
    document: Mapping[str, Any], job: Mapping[str, Any], device: str
) -> Mapping[str, tuple[str, ...] | Failed]:
    """Of an answering job: candidate -> the names of its outputs. Checked and raised as ``read_result`` does."""
    entries = _checked(document, job, device).candidates
    return {
        id: tuple(entry.answered) if entry.error is None else Failed(entry.error.kind, entry.error.message)
        for id, entry in entries.items()
    }


def read_facts(document: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What a device says of itself, as ``measure.environment.machine`` has it, with its Python and libraries."""
    return _read(_Told, document, device, "what it says of itself").facts.model_dump()


def read_state(document: Mapping[str, Any], device: str) -> dict[str, Any]:
    """``state`` (running, ended), ``done`` and ``message`` of a job. Raises EnvironmentMissing when it is gone."""
    state = _read(_JobState, document, device, "what it says of the job").model_dump()
    if state["state"] == "gone":
        raise EnvironmentMissing(
            f"device {device}: somebody removed the job there; run the same command again"
        )
    return {**state, "message": "".join(c if c.isprintable() else " " for c in state["message"])}


def _read(form: type[F], document: Mapping[str, Any], device: str, what: str) -> F:
    try:
        return form.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EnvironmentMissing(
            f"device {device}: {what} is not valid at {where}: {first['msg']}; nothing in it was used"
        ) from error


def _checked(document: Mapping[str, Any], job: Mapping[str, Any], device: str) -> _Result:
    read = _read(_Result, document, device, "its result")
    if read.schema_ != SCHEMA:
        raise EnvironmentMissing(f"device {device}: its result has schema {read.schema_}, expected {SCHEMA}")
    if read.error is not None:
        raise EnvironmentMissing(f"device {device}: {read.error.message}")
    if read.runner != job["runner"] or read.files != dict(job["files"]):
        raise EnvironmentMissing(
            f"device {device}: what it measured has other digests than what was sent; nothing was used"
        )
    expected = [c["id"] for c in job["candidates"]]
    if sorted(read.candidates) != sorted(expected):
        raise EnvironmentMissing(
            f"device {device}: it measured {sorted(read.candidates)}, expected {sorted(expected)}"
        )
    return read


def _entry(entry: _Entry, blocks: int, id: str, device: str) -> Timing | Failed:
    if entry.error is not None:
        return Failed(entry.error.kind, entry.error.message)
    if len(entry.blocks_ns) != blocks or entry.load_ms is None or entry.first_inference_ms is None:
        raise EnvironmentMissing(
            f"device {device}: {id} has {len(entry.blocks_ns)} blocks, expected {blocks}"
        )
    return Timing(
        tuple(tuple(block) for block in entry.blocks_ns),
        entry.load_ms,
        entry.first_inference_ms,
        entry.peak_memory_bytes,
        entry.steady,
        all(output.finite for output in entry.outputs.values()),
        entry.versions,
    )


# ---------------------------------------------------------------- the form

_Nanoseconds = Annotated[int, Field(ge=1, le=LONGEST_NS)]
_Name = Annotated[str, Field(max_length=10_000)]
_Block = Annotated[list[_Nanoseconds], Field(min_length=1)]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Error(_Form):
    kind: str = Field(max_length=40)
    message: str = Field(max_length=10_000)


class _Output(_Form):
    finite: bool


class _Operator(_Form):
    op: str = Field(max_length=200)
    provider: str = Field(max_length=200)
    precision: str = Field(max_length=40)
    role: Literal["", "fallback", "reformat"] = ""
    ns: list[Annotated[int, Field(ge=0, le=LONGEST_NS)]]


class _Entry(_Form):
    error: _Error | None
    blocks_ns: list[_Block] = []
    load_ms: float | None = Field(default=None, ge=0)
    first_inference_ms: float | None = Field(default=None, ge=0)
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    steady: bool = False
    outputs: dict[str, _Output] = {}
    versions: dict[str, str] = {}
    operators: dict[str, _Operator] = {}
    answered: list[_Name] = []


class _State(_Form):
    time_s: float
    load: float | None = None
    mhz: float | None = None
    celsius: float | None = None
    throttled_us: int | None = None
    stolen_ticks: int | None = None


class _Facts(_Form):
    architecture: str = Field(max_length=100)
    cpu: str = Field(max_length=200)
    flags: list[str] = Field(max_length=100)
    cores: int = Field(ge=1)
    cpu_quota: float | None
    memory_bytes: int | None
    governor: str | None
    virtual: bool
    emulated: bool
    python: str = Field(max_length=40)
    libraries: dict[str, str]


class _Told(_Form):
    facts: _Facts


class _JobState(_Form):
    state: Literal["running", "ended", "gone"]
    done: float = Field(0.0, ge=0, le=1)
    message: Annotated[str, Field(max_length=10_000)] = ""


class _Result(_Form):
    schema_: int = Field(alias="schema")
    runner: str
    error: _Error | None
    files: dict[str, str]
    candidates: dict[str, _Entry]
    blocks: list[_State]
