"""Answering jobs: what an artefact gives for real inputs on a device, in a process of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.candidate import answer_file
from deploycompress.devices.jobs import Candidate, Progress, execute, failure_of
from deploycompress.devices.results import Failed, read_answers
from deploycompress.errors import EnvironmentMissing

Feed = Mapping[str, np.ndarray]

BYTES_AT_ONCE = 1 << 28  # of the inputs of one job
DEADLINE_S = 3600.0


def answers(
    device: Device,
    candidate: Candidate,
    feeds: Iterable[Feed],
    *,
    deadline_s: float = DEADLINE_S,
    progress: Progress = lambda done, message: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Outputs by name for each feed, in order; ``deadline_s`` is that of all of them.

    Raises StageFailed when the artefact crashes or does not run, EnvironmentMissing when the device fails or
    cannot load it.
    """
    end = time.monotonic() + deadline_s
    for part in _parts(feeds):
        yield from _answer(device, candidate, part, max(1.0, end - time.monotonic()), progress)


def _parts(feeds: Iterable[Feed]) -> Iterator[list[Feed]]:
    part: list[Feed] = []
    size = 0
    for feed in feeds:
        part.append(feed)
        size += sum(array.nbytes for array in feed.values())
        if size >= BYTES_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _answer(
    device: Device, candidate: Candidate, feeds: list[Feed], deadline_s: float, progress: Progress
) -> Iterator[dict[str, np.ndarray]]:
    settings = {"do": "answer", "deadline_s": deadline_s}
    where = str(device.facts()["name"])
    with (
        tempfile.TemporaryDirectory(prefix="deploycompress-answers-") as folder,
        execute(device, [candidate], feeds, settings, progress) as (job, document, id),
    ):
        names = read_answers(document, job, where)[candidate.id]
        if isinstance(names, Failed):
            raise failure_of(names, f"{candidate.id} on {where} in {candidate.runtime} did not run")
        for number in range(len(feeds)):
            sent = {
                name: (answer_file(0, number, place), Path(folder) / f"{place}.npy")
                for place, name in enumerate(names)
            }
            device.collect(id, dict(sent.values()))
            yield {name: _read(path, where) for name, (_, path) in sent.items()}


def _read(path: Path, device: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):  # numpy also opens archives
            raise ValueError("it is an archive")
    except (ValueError, OSError, EOFError, MemoryError) as error:
        raise EnvironmentMissing(f"device {device}: an output in its result is no array: {error}") from error
    return array
