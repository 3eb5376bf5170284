"""Reads what a device sent back, as one reads anything from outside: nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploycompress.devices.disturbance import DISTURBED, disturbances, undisturbed
from deploycompress.devices.runner import SCHEMA
from deploycompress.errors import EnvironmentMissing

F = TypeVar("F", bound=BaseModel)

LONGEST_NS = 10**13  # of one call: almost three hours
FEW = 0.1  # of the rounds, in which something disturbs nearly every measurement


@dataclass(frozen=True)
class Timing:
    """One candidate's raw figures: of the rounds that count, which are the same ones for all candidates of a job."""

    blocks_ns: tuple[tuple[int, ...], ...]
    set_aside_ns: tuple[tuple[int, ...], ...]  # of the rounds that something disturbed
    energy_uj: Mapping[
        str, int
    ]  # by what the counter counts, over all calls of ``blocks_ns``; empty without one
    load_ms: float
    first_inference_ms: float
    peak_memory_bytes: int | None
    gpu_memory_bytes: int | None
    steady: bool
    finite: bool  # its outputs of the first inference
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Failed:
    """Why a candidate has no figures; the kinds are those of ``candidate.Failure``."""

    kind: str
    message: str


@dataclass(frozen=True)
class Built:
    """An engine that a device made: what its runtime told, and whether a description of its layers lies beside it."""

    told: Mapping[str, Any]
    inspected: bool


@dataclass(frozen=True)
class OperatorProfile:
    """One operator of an artefact, as the runtime has it after its own optimisation."""

    op: str  # its type
    provider: str  # or the kernel, where the runtime tells that
    precision: str
    role: str  # "fallback", "reformat", or empty: it computes where it was meant to
    ns: tuple[int, ...]  # of each inference


@dataclass(frozen=True)
class Result:
    """What a job measured; ``disturbed`` has of each round the kinds of what disturbed it.

    ``states``: of the machine before the first round and after each (load, temperature, and what is judged).
    ``quiet``: enough rounds were undisturbed, and only those count; else all of them do, and decide nothing.
    """

    candidates: Mapping[str, Timing | Failed]
    states: tuple[Mapping[str, Any], ...]
    disturbed: tuple[tuple[str, ...], ...]
    quiet: bool

    def remarks(self) -> tuple[str, ...]:
        """What kept the machine from being itself, in words; nothing where it was so in few rounds, as it always is."""
        rounds, disturbed = len(self.disturbed), sum(map(bool, self.disturbed))
        if disturbed <= FEW * rounds:
            return ()
        counted = {kind: sum(kind in kinds for kinds in self.disturbed) for kind in DISTURBED}
        what = ", ".join(f"{count} {DISTURBED[kind]}" for kind, count in counted.items() if count)
        those = "which are left out" if self.quiet else "too many to leave out, so the times decide nothing"
        return (f"{disturbed} of {rounds} rounds were disturbed ({what}), {those}",)


def read_result(document: Mapping[str, Any], job: Mapping[str, Any], device: str) -> Result:
    """Check a result against the job it answers. Raises EnvironmentMissing when it is not one.

    A job that could not be run at all (device busy, files damaged on the way) is raised as well.
    """
    read = _checked(document, job, device)
    rounds, most = len(read.states) - 1, job["blocks"] + job["extra_blocks"]
    timed = {id: entry for id, entry in read.candidates.items() if entry.error is None}
    for id, entry in timed.items():
        if len(entry.blocks) != rounds or entry.load_ms is None or entry.first_inference_ms is None:
            raise EnvironmentMissing(
                f"device {device}: {id} has {len(entry.blocks)} blocks of {rounds} rounds; nothing in it was used"
            )
    if not (job["fewest_blocks"] if timed else 0) <= rounds <= most:
        raise EnvironmentMissing(
            f"device {device}: it measured {rounds} rounds, expected {job['fewest_blocks']} to {most}; "
            "nothing was used"
        )
    states = [state.model_dump() for state in read.states]
    blocks = {id: [block.model_dump() for block in entry.blocks] for id, entry in timed.items()}
    disturbed = disturbances(states, blocks, job["candidates"])
    quiet = undisturbed(disturbed, min(rounds, job["blocks"]))
    counting = range(rounds) if quiet is None else quiet
    return Result(
        {id: _entry(entry, counting) for id, entry in read.candidates.items()},
        tuple(states),
        tuple(map(tuple, disturbed)),
        quiet is not None,
    )


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


def read_built(
    document: Mapping[str, Any], job: Mapping[str, Any], device: str
) -> Mapping[str, Built | Failed]:
    """Of a building job: candidate -> what was built. Checked and raised as ``read_result`` does."""
    entries = _checked(document, job, device).candidates
    return {
        id: Built(entry.built, entry.inspected)
        if entry.error is None
        else Failed(entry.error.kind, entry.error.message)
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


def _entry(entry: _Entry, counting: Sequence[int]) -> Timing | Failed:
    if entry.error is not None:
        return Failed(entry.error.kind, entry.error.message)
    assert entry.load_ms is not None and entry.first_inference_ms is not None
    counted = [entry.blocks[number] for number in counting]
    told = [set(block.energy_uj) for block in counted]
    known = sorted(set.intersection(*told)) if told else []
    return Timing(
        tuple(tuple(block.samples_ns) for block in counted),
        tuple(tuple(b.samples_ns) for number, b in enumerate(entry.blocks) if number not in set(counting)),
        {name: sum(block.energy_uj[name] for block in counted) for name in known},
        entry.load_ms,
        entry.first_inference_ms,
        entry.peak_memory_bytes,
        entry.gpu_memory_bytes,
        entry.steady,
        all(output.finite for output in entry.outputs.values()),
        entry.versions,
    )


# ---------------------------------------------------------------- the form

_Nanoseconds = Annotated[int, Field(ge=1, le=LONGEST_NS)]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Name = Annotated[str, Field(max_length=10_000)]
_Plain = bool | int | float | Annotated[str, Field(max_length=1000)]
_Samples = Annotated[list[_Nanoseconds], Field(min_length=1)]


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


class _Block(_Form):
    samples_ns: _Samples
    cpu_share: float | None = Field(ge=0)  # None: a program's, in a process of its own
    mhz: float | None = Field(gt=0)
    energy_uj: dict[Annotated[str, Field(max_length=100)], _Count] = Field(max_length=1000)


class _Entry(_Form):
    error: _Error | None
    blocks: list[_Block] = []
    load_ms: float | None = Field(default=None, ge=0)
    first_inference_ms: float | None = Field(default=None, ge=0)
    peak_memory_bytes: _Count | None = None
    gpu_memory_bytes: _Count | None = None
    steady: bool = False
    outputs: dict[str, _Output] = {}
    versions: dict[str, str] = {}
    operators: dict[str, _Operator] = {}
    answered: list[_Name] = []
    built: dict[_Name, _Plain | dict[_Name, _Plain]] = Field(default={}, max_length=100)
    inspected: bool = False


class _State(_Form):
    time_s: float
    load: float | None = None
    celsius: float | None = None
    governor: Annotated[str, Field(max_length=1000)] | None = None
    throttled_us: _Count | None = None
    stolen_ticks: _Count | None = None


class _Facts(_Form):
    architecture: str = Field(max_length=100)
    cpu: str = Field(max_length=200)
    flags: list[str] = Field(max_length=100)
    cores: int = Field(ge=1, lt=1 << 63)
    cpu_quota: float | None
    memory_bytes: _Count | None
    governor: str | None
    gpu: str | None = Field(None, max_length=200)
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
    states: list[_State] = Field(max_length=100_000)
