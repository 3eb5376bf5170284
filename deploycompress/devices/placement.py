"""Where each operator of an artefact runs: kernel, precision and time, with fallbacks and reformatting told apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.jobs import Candidate, Progress
from deploycompress.devices.profiles import NotProfiled, profile

CALLS, UNSTEADY = 25, 5  # the first ones are slower


@dataclass(frozen=True)
class Placed:
    """One operator; ``ms``: its median time in one inference."""

    node: str
    op: str
    provider: str
    precision: str
    role: str  # as ``results.OperatorProfile`` has it
    ms: float


def placement(
    device: Device,
    candidate: Candidate,
    feed: Mapping[str, np.ndarray],
    progress: Progress = lambda done, message: None,
) -> list[dict[str, Any]] | None:
    """A row for each operator in the order in which they run, as JSON; None where the runtime does not tell.

    Raises EnvironmentMissing when the device fails.
    """
    try:
        found = profile(device, candidate, feed, calls=CALLS, progress=progress)
    except NotProfiled:
        return None
    return [
        asdict(
            Placed(
                name,
                of.op,
                of.provider,
                of.precision,
                of.role,
                statistics.median(of.ns[UNSTEADY:] or of.ns or (0,)) / 1e6,
            )
        )
        for name, of in found.items()
    ]
