"""Measures artefacts beside the first of them, which runs twice: what the two differ by is the noise floor."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploycompress.artifact import read_json
from deploycompress.contracts import Device
from deploycompress.devices.answers import answers
from deploycompress.devices.jobs import MOST_AT_ONCE, Candidate, Progress, measure
from deploycompress.errors import StageFailed
from deploycompress.measure.intervals import Statistic, Word, noise_floor, ratio, word
from deploycompress.measure.measurement import Measurement, Speedup
from deploycompress.measure.plan import Plan
from deploycompress.model.parity import LOWEST_COSINE, compare

STATISTICS: tuple[Statistic, ...] = ("p50", "p90", "p99", "mean")
FEWEST_ALIKE = LOWEST_COSINE["int8"]  # cosine of the outputs: below it two artefacts do not compute the same


@dataclass(frozen=True)
class Row:
    """One artefact beside the first one; ``speedups`` are over that one, by statistic, and empty for it itself.

    ``samples``: the file of every call, where they are kept.
    """

    id: str
    measurement: Measurement
    speedups: Mapping[Statistic, Speedup | None]
    samples: Path | None = None

    @property
    def throughput(self) -> float:
        """Inferences a second, one call at a time."""
        return 1000 * self.measurement.batch_size / self.measurement.latency_ms.mean


@dataclass(frozen=True)
class SideBySide:
    rows: tuple[Row, ...]
    again: Row | None  # the first one a second time; None where nothing was to be told apart

    def floor(self, statistic: Statistic = "p50") -> float | None:
        """The share by which the first artefact differs from itself."""
        found = None if self.again is None else self.again.speedups[statistic]
        return None if found is None else noise_floor(found)

    def word(self, row: Row, statistic: Statistic = "p50") -> Word | None:
        """What is to be said of a row against the first one; None of that one itself."""
        found, floor = row.speedups.get(statistic), self.floor(statistic)
        if not row.speedups:
            return None
        if row.measurement.doubtful or found is None or floor is None:
            return "cannot tell"
        return word(found, floor)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, each different from the others also as a file's name: of raw samples."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        number, unique = 1, name
        while (spelt := re.sub(r"[^A-Za-z0-9._@-]", "-", unique)) in taken:
            number += 1
            unique = f"{name} ({number})"
        taken.add(spelt)
        found.append(unique)
    return found


def side_by_side(
    device: Device,
    candidates: Sequence[Candidate],
    feed: Mapping[str, np.ndarray],
    plan: Plan,
    progress: Progress,
    *,
    again: bool,
    keep: Path | None = None,
) -> SideBySide:
    """Every candidate in one job with the first one, a few at a time; with ``again``, that one a second time too.

    ``keep``: where the raw samples of each job stay, in a folder with its number. Raises as ``devices.jobs.measure`` does.
    """
    first, *others = candidates
    twin = replace(first, id=distinct([*(c.id for c in candidates), f"{first.id} again"])[-1])
    jobs = list(_jobs([twin, *others] if again else others)) or [[]]
    rows: dict[str, Row] = {}
    for number, job in enumerate(jobs):

        def share(done: float, message: str, number: int = number) -> None:
            progress((number + done) / len(jobs), message)

        with tempfile.TemporaryDirectory(prefix="deploycompress-benchmark-") as temporary:
            folder = Path(temporary) if keep is None else keep / str(number)
            measured = measure(
                device,
                [first, *job],
                baseline=first.id,
                feed=feed,
                workdir=folder,
                progress=share,
                plan=plan,
                gated=True,
            )
            files = {id: folder / str(m.samples) for id, m in measured.items()}
            blocks = {id: read_json(file)["blocks"] for id, file in files.items()}
        kept = {} if keep is None else files
        rows.setdefault(first.id, Row(first.id, measured[first.id], {}, kept.get(first.id)))
        for candidate in job:
            speedups = {s: ratio(s, blocks[first.id], blocks[candidate.id]) for s in STATISTICS}
            rows[candidate.id] = Row(candidate.id, measured[candidate.id], speedups, kept.get(candidate.id))
    return SideBySide(tuple(rows[c.id] for c in candidates), rows.get(twin.id))


def _jobs(others: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Those of one runtime together, as ``measure`` puts them, so that each has the first one in its own job."""
    for runtime in dict.fromkeys(c.runtime for c in others):
        ours = [c for c in others if c.runtime == runtime]
        yield from (ours[i : i + MOST_AT_ONCE] for i in range(0, len(ours), MOST_AT_ONCE))


def cosines(
    device: Device, candidates: Sequence[Candidate], feed: Mapping[str, np.ndarray], progress: Progress
) -> dict[str, float | str]:
    """Candidate id -> cosine of its outputs with the first one's on the same inputs, or why there is none."""
    first, *others = candidates
    if not others:
        return {}
    reference = next(answers(device, first, [feed], progress=progress))
    found: dict[str, float | str] = {}
    for candidate in others:
        try:
            found[candidate.id] = compare(
                reference, next(answers(device, candidate, [feed], progress=progress))
            ).cosine
        except StageFailed as reason:
            found[candidate.id] = str(reason)
    return found
