"""Where each operator of an artefact runs: kernel, precision and time, with fallbacks and reformatting told apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.jobs import Candidate, Progress
from deploycompress.devices.profiles import Profile, profiles
from deploycompress.errors import EnvironmentMissing

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


def placements(
    device: Device,
    candidates: Sequence[Candidate],
    feed: Mapping[str, np.ndarray],
    progress: Progress = lambda done, message: None,
) -> dict[str, list[dict[str, Any]] | EnvironmentMissing]:
    """By candidate id, a row for each operator in the order in which they run, as JSON; or why there is none.

    That is NotProfiled where the runtime does not tell. Raises EnvironmentMissing when the device itself fails.
    """
    found = profiles(device, candidates, feed, calls=CALLS, progress=progress)
    return {id: of if isinstance(of, EnvironmentMissing) else _rows(of) for id, of in found.items()}


def _rows(found: Profile) -> list[dict[str, Any]]:
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
