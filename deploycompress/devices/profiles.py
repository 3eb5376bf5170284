"""Profiling jobs: what every operator of one artefact takes on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.jobs import Candidate, Progress, execute
from deploycompress.devices.results import Failed, read_profile
from deploycompress.errors import EnvironmentMissing

DEADLINE_S = 600.0  # of one catalogue: it takes seconds where all is well


class NotProfiled(EnvironmentMissing):
    """The runtime does not tell what its operators take."""


def profile(
    device: Device,
    candidate: Candidate,
    feed: Mapping[str, np.ndarray],
    *,
    calls: int,
    progress: Progress = lambda done, message: None,
) -> Mapping[str, Sequence[int]]:
    """Operator, by the name the runtime has for it -> nanoseconds of each of ``calls`` inferences.

    Raises NotProfiled where the runtime has no such figures, EnvironmentMissing when the device fails.
    """
    settings = {"profile_calls": calls, "blocks": 0, "deadline_s": DEADLINE_S}
    job, document = execute(device, [candidate], feed, settings, progress)
    name = str(device.facts()["name"])
    entry = read_profile(document, job, name)[candidate.id]
    if isinstance(entry, Failed):
        failed = NotProfiled if entry.kind == "unsupported" else EnvironmentMissing
        raise failed(f"{candidate.id} on {name} in {candidate.runtime} was not profiled: {entry.message}")
    return entry
