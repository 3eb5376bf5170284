"""Profiling jobs: what every operator of one artefact takes on a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.jobs import Candidate, Progress, execute
from deploycompress.devices.results import Failed, OperatorProfile, read_profile
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
) -> Mapping[str, OperatorProfile]:
    """Operator, by the name the runtime has for it -> what it is, and its time in each of ``calls`` inferences.

    Raises NotProfiled where the runtime has no such figures, EnvironmentMissing when the device fails.
    """
    settings = {"do": "profile", "calls": calls, "deadline_s": DEADLINE_S}
    name = str(device.facts()["name"])
    with execute(device, [candidate], [feed], settings, progress) as (job, document, _):
        entry = read_profile(document, job, name)[candidate.id]
    if isinstance(entry, Failed):
        failed = NotProfiled if entry.kind == "unsupported" else EnvironmentMissing
        raise failed(f"{candidate.id} on {name} in {candidate.runtime} was not profiled: {entry.message}")
    return entry
