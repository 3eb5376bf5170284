"""Where latencies are measured, and what keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.config.schema import TargetConfig
from deploycompress.contracts import Device, Event, Store
from deploycompress.devices.jobs import Candidate, open_device
from deploycompress.measure.environment import versions
from deploycompress.registry import RUNTIMES

SCHEMA = 3  # raised when the same key would give other figures
COMPARED = ("architecture", "cpu", "flags", "cores", "cpu_quota")  # of a device's facts


@dataclass(frozen=True)
class Place:
    """Where operators and whole models are measured."""

    device: Device
    target: TargetConfig

    @classmethod
    def of(cls, target: TargetConfig) -> Place:
        return cls(open_device(target.device), target)

    @property
    def key(self) -> Mapping[str, Any]:
        """What latencies hold for: the machine, the runtime with its version, and how it is set up."""
        facts = self.device.facts()
        return {
            "schema": SCHEMA,
            "device": {name: facts.get(name) for name in COMPARED},
            "runtime": self.target.runtime,
            "versions": versions(getattr(RUNTIMES.load(self.target.runtime), "libraries", ())),
            "provider": self.target.provider,
            "precision": self.target.precision,
            "threads": self.target.threads,
        }

    def candidate(self, id: str, path: Path) -> Candidate:
        target = self.target
        return Candidate(id, path, target.runtime, target.provider, target.threads, target.precision)


@dataclass(frozen=True)
class Bench:
    """Where latencies are measured, and what is kept of that."""

    place: Place
    store: Store
    workdir: Path
    emit: Callable[[Event], None]

    def progress(self, done: float, message: str) -> None:
        self.emit(Event("progress", message, done=done))

    def say(self, message: str, figures: Mapping[str, float]) -> None:
        self.emit(Event("decision", message, figures))
