"""Measuring jobs: candidates interleaved with the baseline on one device, from files to measurements."""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploycompress.artifact import canonical_json, digest_file, write_text
from deploycompress.config.devices import KINDS, LOCAL, DeviceConfig, Devices
from deploycompress.config.wording import listed
from deploycompress.contracts import Device
from deploycompress.devices import quiet
from deploycompress.devices.bundle import bundle
from deploycompress.devices.results import Failed, Result, Timing, read_result
from deploycompress.devices.runner import SCHEMA
from deploycompress.errors import ConfigError, DeployCompressError, EnvironmentMissing, StageFailed
from deploycompress.measure.intervals import Statistic, latency, own_intervals, paired_speedup, ratio
from deploycompress.measure.measurement import SMEARED, Measurement, Speedup
from deploycompress.measure.plan import UNTIMED_MS, Plan
from deploycompress.registry import DEVICES
from deploycompress.runtimes.onnx_file import check
from deploycompress.runtimes.program import PROGRAM
from deploycompress.writing import saving

MOST_AT_ONCE = (
    4  # candidates beside the baseline: all of them are in memory, and pairs must stay close in time
)
MAIN_FILES = ("model.onnx", "model.xml", "model.engine", "model.safetensors")  # of a folder
SLOWEST = 20  # times the nominal time, before a job is given up
LOADING_S = 60.0  # for each candidate
GPU_COUNTS_MS = 200.0  # of a block, at least, for energy by a GPU's counter
TAILS: tuple[Statistic, ...] = ("p90", "p99", "mean")
SLOWEST_CALL_S = 30.0  # of what is measured at all, however slow
OPENING_CALLS = 16  # the first inference and the warm-up of a slow candidate

NONE = Devices()

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Candidate:
    """One artefact in one configuration of its runtime; ``path`` is a file, or a folder with ``model.*`` in it."""

    id: str
    path: Path
    runtime: str
    provider: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)  # more of the runtime's own


def open_device(name: str, devices: Devices = NONE) -> Device:
    """The device of that name: ``local``, one that is declared, or ``module:Name``.

    A declared one is opened once in a process, since what it says of itself is asked for often.
    Raises ConfigError when there is none.
    """
    config = devices.of(name)
    if config is not None:
        return _declared(name, config, devices.controller)
    if name != LOCAL and ":" not in name:
        known = ", ".join((LOCAL, *devices.declared))
        raise ConfigError(f"unknown device {name!r}; known: {known}, a name in devices.yaml, or module:Name")
    device: Device = DEVICES.load(name)()
    return device


@functools.cache
def _declared(name: str, config: DeviceConfig, controller: str) -> Device:
    kind = next(kind for kind, model in KINDS.items() if isinstance(config, model))
    device: Device = DEVICES.load(kind)(name, config, controller)
    return device


def measure(
    device: Device,
    candidates: Sequence[Candidate],
    *,
    baseline: str | None,
    feed: Mapping[str, np.ndarray],
    plan: Plan,
    workdir: Path,
    progress: Progress = lambda done, message: None,
    references: Mapping[str, str] | None = None,
    gated: bool = False,
) -> dict[str, Measurement]:
    """Measure every candidate in a process of its own; by candidate id, raw samples in ``workdir/samples``.

    ``gated``: with all that gates ask for, the intervals of every figure and of its ratio to the baseline's.

    The speed-up is against the candidate ``baseline``; for those of another runtime that one is ``speedup_vs_target``,
    and theirs is against the one that ``references`` names for their runtime.
    Raises StageFailed when a candidate crashes or gives NaN, EnvironmentMissing when the device cannot run it.
    """
    references = dict(references or {})
    references.update({c.runtime: c.id for c in candidates if c.id == baseline})
    jobs = split(candidates, baseline, references)
    measured: dict[str, Measurement] = {}
    for number, group in enumerate(jobs):

        def share(done: float, message: str, number: int = number) -> None:
            progress((number + done) / len(jobs), message)

        result = run_job(device, group, feed=feed, plan=plan, progress=share)
        for candidate in group:
            if candidate.id in measured:  # the baseline, in a job before
                continue
            timing = _timing(candidate, result, device)
            measurement = _measurement(candidate, timing, result, feed, device, workdir)
            measurement = _without_smeared_energy(measurement, plan)
            reference = references.get(candidate.runtime)
            measured[candidate.id] = replace(
                measurement,
                speedup=_speedup(candidate.id, reference, result),
                speedup_vs_target=None if reference == baseline else _speedup(candidate.id, baseline, result),
                **(_for_gates(timing, result.candidates.get(baseline or "")) if gated else {}),
            )
    return measured


def split(
    candidates: Sequence[Candidate], baseline: str | None, references: Mapping[str, str]
) -> list[list[Candidate]]:
    """The candidates of each job: a few of one runtime at a time, each time with what they are compared with."""
    compared = {baseline, *references.values()}
    jobs: list[list[Candidate]] = []
    for runtime in dict.fromkeys(c.runtime for c in candidates):
        first = [c for c in candidates if c.id in (baseline, references.get(runtime))]
        others = [c for c in candidates if c.runtime == runtime and c.id not in compared]
        jobs.extend(first + others[i : i + MOST_AT_ONCE] for i in range(0, len(others), MOST_AT_ONCE))
    alone = [c for c in candidates if not any(c in job for job in jobs)]
    return [*jobs, alone] if alone else jobs


def run_job(
    device: Device,
    candidates: Sequence[Candidate],
    *,
    feed: Mapping[str, np.ndarray],
    plan: Plan,
    progress: Progress,
) -> Result:
    """One job; a candidate that fails is an entry of the result.

    Raises EnvironmentMissing when the device is busy or away, or its result is not to be believed.
    """
    settings = {
        "do": "measure",
        "blocks": plan.blocks,
        "extra_blocks": plan.extra_blocks,
        "fewest_blocks": plan.fewest,
        "enough_s": None if plan.enough_s is None else plan.enough_s * len(candidates),
        "block_ms": plan.block_ms,
        "untimed_ms": untimed_ms(candidates),
        "warmup_ms": plan.warmup_ms,
        "least_samples": plan.block_samples,
        "enough_samples": plan.enough_samples,
        "answer_s": _answer_s(plan),
        "deadline_s": _deadline_s(len(candidates), plan),
    }
    with execute(device, candidates, [feed], settings, progress) as (job, document, _):
        return read_result(document, job, str(device.facts()["name"]))


def untimed_ms(candidates: Sequence[Candidate]) -> float:
    """At the start of each block: another candidate has had the caches, and its threads spin on for a while.

    With 4 ms one and the same file, 2 threads, was up to 1.6 times itself; with 50 ms it is within 1 %. Without a second
    thread there is nothing that spins: the ratios of three networks of 0.4, 1.3 and 8.5 ms were with 5 ms what they
    were with 10, 15 and 40 (3.50 and 23.0, within 1 %), and there is time for more blocks.
    """
    return UNTIMED_MS if all(candidate.threads == 1 for candidate in candidates) else 50.0


@contextlib.contextmanager
def execute(
    device: Device,
    candidates: Sequence[Candidate],
    feeds: Sequence[Mapping[str, np.ndarray]],
    settings: Mapping[str, Any],
    progress: Progress,
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], str]]:
    """Push, start, wait and pull: the job as it was sent, what the device answered, not yet read, and the job's id.

    The job and its files are there until the block is left.
    """
    with tempfile.TemporaryDirectory(prefix="deploycompress-push-") as folder, contextlib.ExitStack() as turn:
        job, files = _describe(Path(folder), device, candidates, feeds, settings)
        turn.enter_context(quiet.measuring(str(device.facts()["name"])))
        device.push(files)
        id = device.start(job)
        try:
            while True:
                state = device.poll(id)
                progress(state["done"], state["message"])
                if state["state"] == "ended":
                    break
            yield job, device.pull(id), id
        finally:
            with contextlib.suppress(OSError):
                device.stop(id)


def _describe(
    folder: Path,
    device: Device,
    candidates: Sequence[Candidate],
    feeds: Sequence[Mapping[str, np.ndarray]],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The job, and the files it needs by digest."""
    paths: dict[str, Path] = {}  # by their name in the job folder
    described = []
    for number, candidate in enumerate(candidates):
        place = f"candidate{number}"
        paths.update({f"{place}/{name}": path for name, path in _files(candidate.path)})
        options = {"provider": candidate.provider, "threads": candidate.threads, **candidate.options}
        file = f"{place}/{_main_file(candidate.path)}"
        if candidate.runtime == PROGRAM:
            paths[PROGRAM] = _program(device)
        described.append({"id": candidate.id, "runtime": candidate.runtime, "file": file, "options": options})
    inputs: list[dict[str, str]] = []
    for number, feed in enumerate(feeds):
        inputs.append({name: f"feed/{number}.{place}.npy" for place, name in enumerate(feed)})
        for name, file in inputs[-1].items():
            paths[file] = folder / Path(file).name
            with saving(paths[file]):
                np.save(paths[file], np.ascontiguousarray(feed[name]), allow_pickle=False)
    runner = folder / "runner.py"
    write_text(runner, bundle(*dict.fromkeys(c.runtime for c in candidates)))
    digests = {name: digest_file(path) for name, path in paths.items()}
    files = {digests[name]: path for name, path in paths.items()}
    job = {
        "schema": SCHEMA,
        "runner": digest_file(runner),
        "files": digests,
        "feed": inputs[0],
        "feeds": inputs,
        "candidates": described,
        **settings,
    }
    return job, {**files, digest_file(runner): runner}


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Relative names and places: all of a folder, or one file with the weights that an ONNX file keeps beside it."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield file.relative_to(path).as_posix(), file
        return
    yield path.name, path
    if path.suffix == ".onnx":
        with contextlib.suppress(ValueError):  # the device refuses the file, and says why
            for name in check(path)["external"]:
                yield name, path.parent / name


def _program(device: Device) -> Path:
    """The user's own, as the device's declaration names it."""
    program: Path | None = getattr(device, "program", None)
    if program is None:
        raise EnvironmentMissing(f"no program can run: {device.missing(PROGRAM)}")
    return program


def _main_file(path: Path) -> str:
    if not path.is_dir():
        return path.name
    found = [name for name in MAIN_FILES if (path / name).is_file()]
    if not found:
        raise StageFailed(f"{path} holds no {listed(MAIN_FILES, last='or')}; nothing there can be measured")
    return found[0]


def _answer_s(plan: Plan) -> float:
    """What a candidate has for loading and warming up, or for one block: a call that hangs ends with it."""
    calls = max(OPENING_CALLS, plan.block_samples + 1)
    return LOADING_S + SLOWEST * (plan.warmup_ms + plan.block_ms) / 1000 + calls * SLOWEST_CALL_S


def _deadline_s(candidates: int, plan: Plan) -> float:
    """Of the job: every call of the fewest blocks may be as slow as that."""
    nominal_s = (plan.warmup_ms + (plan.blocks + plan.extra_blocks) * plan.block_ms) / 1000
    calls = OPENING_CALLS + plan.fewest * (plan.block_samples + 1)
    return candidates * (LOADING_S + SLOWEST * nominal_s + calls * SLOWEST_CALL_S)


# ---------------------------------------------------------------- from timings to measurements


def _timing(candidate: Candidate, result: Result, device: Device) -> Timing:
    entry = result.candidates[candidate.id]
    where = f"{candidate.id} on {device.facts()['name']} in {candidate.runtime}"
    if isinstance(entry, Failed):
        raise failure_of(entry, f"{where} was not measured")
    if not entry.finite:
        raise StageFailed(f"{where} gives NaN or infinite outputs; a figure of it would mean nothing")
    return entry


def _speedup(id: str, reference: str | None, result: Result) -> Speedup | None:
    """Over ``reference`` in the same job; None for that one itself, and where there is none."""
    before, after = result.candidates.get(reference or ""), result.candidates[id]
    if id == reference or not isinstance(before, Timing) or not isinstance(after, Timing):
        return None
    return paired_speedup(before.blocks_ns, after.blocks_ns)


def _without_smeared_energy(measurement: Measurement, plan: Plan) -> Measurement:
    """A GPU's counter stands still for tens of milliseconds: blocks that take turns would share what one of them took."""
    if plan.block_ms >= GPU_COUNTS_MS or not any(name.startswith("gpu") for name in measurement.energy_of):
        return measurement
    note = f"{SMEARED}: its counter stands still for longer than the {plan.block_ms:g} ms of a block; mode full has longer ones"
    return replace(measurement, energy_mj=None, energy_of=(), notes=(*measurement.notes, note))


def _for_gates(timing: Timing, baseline: Timing | Failed | None) -> dict[str, Any]:
    """What a measurement has beside its figures; ``baseline``: in the same job."""
    found: dict[str, Any] = {"intervals": own_intervals(timing.blocks_ns)}
    if not isinstance(baseline, Timing) or baseline is timing:
        return found
    ratios = {name: ratio(name, baseline.blocks_ns, timing.blocks_ns) for name in TAILS}
    found["ratios"] = {name: of for name, of in ratios.items() if of is not None}
    own, whole = (sum(t.energy_uj.values()) / sum(map(len, t.blocks_ns)) for t in (timing, baseline))
    alike = timing.energy_uj.keys() == baseline.energy_uj.keys()
    return found | ({"energy_ratio": own / whole} if alike and whole else {})


def failure_of(entry: Failed, what: str) -> DeployCompressError:
    """The candidate's own failure, or that of a device which cannot run it."""
    failed = StageFailed if entry.kind in ("signal", "run", "deadline") else EnvironmentMissing
    return failed(f"{what}: {entry.message}")


def _measurement(
    candidate: Candidate,
    timing: Timing,
    result: Result,
    feed: Mapping[str, np.ndarray],
    device: Device,
    workdir: Path,
) -> Measurement:
    samples = f"samples/{re.sub(r'[^A-Za-z0-9._@-]', '-', candidate.id)}.json"
    raw = {
        "unit": "ns",
        "blocks": timing.blocks_ns,
        "set_aside": timing.set_aside_ns,
        "disturbed": result.disturbed,
        "states": result.states,
    }
    write_text(workdir / samples, canonical_json(raw) + "\n")
    notes = result.remarks()
    emulated = bool(device.facts().get("emulated"))
    if emulated:
        notes = (*notes, "the device is emulated, so its times say nothing about a real one")
    if not timing.steady:
        notes = (*notes, "still changing at the end of the warm-up")
    calls = sum(map(len, timing.blocks_ns))
    return Measurement(
        artifact=candidate.id,
        runtime=candidate.runtime,
        device=str(device.facts()["name"]),
        provider=candidate.provider,
        precision=candidate.precision,
        threads=candidate.threads,
        batch_size=next(iter(feed.values())).shape[0],
        latency_ms=latency(timing.blocks_ns),
        peak_memory_bytes=timing.peak_memory_bytes,
        gpu_memory_bytes=timing.gpu_memory_bytes,
        energy_mj=sum(timing.energy_uj.values()) / 1000 / calls if timing.energy_uj else None,
        energy_of=tuple(timing.energy_uj),
        load_ms=timing.load_ms,
        first_inference_ms=timing.first_inference_ms,
        samples=samples,
        emulated=emulated,
        disturbed=not result.quiet,
        notes=notes,
    )
