"""Building jobs: a runtime's own engine, made on the device that will run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.contracts import Device
from deploycompress.devices.candidate import BUILT, INSPECTED
from deploycompress.devices.jobs import Candidate, Progress, execute
from deploycompress.devices.results import Failed, read_built
from deploycompress.errors import EnvironmentMissing, StageFailed

DEADLINE_S = 7200.0  # TensorRT tries every tactic of every layer


@dataclass(frozen=True)
class BuiltThere:
    """An engine as the device made it."""

    told: Mapping[str, Any]  # what the runtime's ``build`` gave
    inspected: Path | None  # the runtime's own description of it, as JSON, where it has one


def build_on(
    device: Device,
    candidate: Candidate,
    place: Path,
    *,
    progress: Progress = lambda done, message: None,
) -> BuiltThere:
    """Build ``candidate``'s file into ``place`` by its runtime on the device; its options are those of ``build``.

    Raises StageFailed when the runtime finds no engine, EnvironmentMissing when the device fails.
    """
    name = str(device.facts()["name"])
    settings = {"do": "build", "deadline_s": DEADLINE_S}
    with execute(device, [candidate], [{}], settings, progress) as (job, document, id):
        built = read_built(document, job, name)[candidate.id]
        if isinstance(built, Failed):
            failed = EnvironmentMissing if built.kind in ("missing", "load") else StageFailed
            raise failed(f"no engine was built on {name} by {candidate.runtime}: {built.message}")
        inspected = place.with_name(INSPECTED) if built.inspected else None
        files = {BUILT: place, **({INSPECTED: inspected} if inspected is not None else {})}
        device.collect(id, files)
    return BuiltThere(built.told, inspected)
