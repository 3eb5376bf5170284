"""Where latencies are measured, and what keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.config.devices import Devices
from deploycompress.config.schema import TargetConfig
from deploycompress.contracts import Device, Event, Store
from deploycompress.devices.jobs import NONE, Candidate, open_device
from deploycompress.measure.environment import versions
from deploycompress.registry import RUNTIMES

SCHEMA = 3  # raised when the same key would give other figures
COMPARED = ("architecture", "cpu", "flags", "cores", "cpu_quota", "gpu")  # of a device's facts


@dataclass(frozen=True)
class Place:
    """Where operators and whole models are measured."""

    device: Device
    target: TargetConfig

    @classmethod
    def of(cls, target: TargetConfig, devices: Devices = NONE) -> Place:
        return cls(open_device(target.device, devices), target)

    @property
    def key(self) -> Mapping[str, Any]:
        """What latencies hold for: the machine, the runtime with its version, and how it is set up."""
        facts = self.device.facts()
        libraries = getattr(RUNTIMES.load(self.target.runtime), "libraries", ())
        installed = facts.get("libraries")  # of a device that is not this machine
        return {
            "schema": SCHEMA,
            "device": {name: facts.get(name) for name in COMPARED},
            "runtime": self.target.runtime,
            "versions": versions(libraries)
            if installed is None
            else {name: installed[name] for name in libraries if name in installed},
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
