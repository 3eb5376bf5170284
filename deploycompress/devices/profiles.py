"""Profiling jobs: what every operator of an artefact takes on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.jobs import Candidate, Progress, execute
from deploycompress.devices.results import Failed, OperatorProfile, read_profile
from deploycompress.errors import EnvironmentMissing

DEADLINE_S = 600.0  # of one catalogue: it takes seconds where all is well


class NotProfiled(EnvironmentMissing):
    """The runtime does not tell what its operators take."""


Profile = Mapping[str, OperatorProfile]  # operator, by the name the runtime has for it


def profile(
    device: Device,
    candidate: Candidate,
    feed: Mapping[str, np.ndarray],
    *,
    calls: int,
    progress: Progress = lambda done, message: None,
) -> Profile:
    """What each operator is, and its time in each of ``calls`` inferences.

    Raises NotProfiled where the runtime has no such figures, EnvironmentMissing when the device fails.
    """
    found = profiles(device, [candidate], feed, calls=calls, progress=progress)[candidate.id]
    if isinstance(found, EnvironmentMissing):
        raise found
    return found


def profiles(
    device: Device,
    candidates: Sequence[Candidate],
    feed: Mapping[str, np.ndarray],
    *,
    calls: int,
    progress: Progress = lambda done, message: None,
) -> dict[str, Profile | EnvironmentMissing]:
    """Of several in one job: by candidate id what ``profile`` gives, or would raise.

    Raises EnvironmentMissing when the device itself fails.
    """
    settings = {"do": "profile", "calls": calls, "deadline_s": DEADLINE_S * len(candidates)}
    name = str(device.facts()["name"])
    with execute(device, candidates, [feed], settings, progress) as (job, document, _):
        entries = read_profile(document, job, name)
    return {c.id: _profile(c, entries[c.id], name) for c in candidates}


def _profile(candidate: Candidate, entry: Profile | Failed, device: str) -> Profile | EnvironmentMissing:
    if not isinstance(entry, Failed):
        return entry
    failed = NotProfiled if entry.kind == "unsupported" else EnvironmentMissing
    return failed(f"{candidate.id} on {device} in {candidate.runtime} was not profiled: {entry.message}")
