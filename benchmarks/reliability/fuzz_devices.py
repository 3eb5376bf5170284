"""Damaged answers of a device."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz_subject import Subject

from deploycompress.devices.runner import SCHEMA
from deploycompress.errors import EnvironmentMissing


class DeviceResult(Subject):
    """result.json and the short answers of a device."""

    refuses = (EnvironmentMissing,)
    JOB: Mapping[str, Any] = {
        "runner": "r" * 64,
        "files": {"m": "m" * 64},
        "candidates": [{"id": "a", "runtime": "onnxruntime", "options": {"provider": "cpu"}}],
        "blocks": 2,
        "extra_blocks": 1,
        "fewest_blocks": 2,
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        state = {
            "time_s": 1.0,
            "load": 0.1,
            "celsius": None,
            "throttled_us": None,
            "stolen_ticks": 3,
        }
        operator = {"op": "Conv", "provider": "cpu", "precision": "fp32", "role": "", "ns": [1, 2]}
        entry = {
            "error": None,
            "blocks": [
                {"samples_ns": samples, "cpu_share": 1.0, "mhz": 2000.0, "energy_uj": {"package-0": 9}}
                for samples in ([1000, 1100], [900])
            ],
            "load_ms": 3.5,
            "first_inference_ms": 1.0,
            "steady": True,
        }
        entry |= {
            "peak_memory_bytes": 1000,
            "outputs": {"y": {"finite": True}},
            "versions": {"onnxruntime": "1.0"},
        }
        entry |= {"operators": {"c": operator}, "answered": ["y"]}
        common = {
            "schema": SCHEMA,
            "runner": "r" * 64,
            "error": None,
            "files": {"m": "m" * 64},
            "states": [state, state, state],
        }
        facts = {
            "architecture": "x86_64",
            "cpu": "x",
            "flags": ["avx2"],
            "cores": 2,
            "cpu_quota": None,
            "memory_bytes": 1,
        }
        facts |= {
            "governor": None,
            "virtual": True,
            "emulated": False,
            "python": "3.11",
            "libraries": {"numpy": "2"},
        }
        self.documents = {
            "result": common | {"candidates": {"a": entry}},
            "failed": common | {"candidates": {"a": {"error": {"kind": "crash", "message": "x"}}}},
            "facts": {"facts": facts},
            "state": {"state": "running", "done": 0.5, "message": "x"},
        }

    def good(self) -> list[Any]:
        return [(what, json.dumps(document).encode()) for what, document in self.documents.items()]

    def input(self, chance: random.Random) -> tuple[str, bytes]:
        what = chance.choice((*self.documents, "result", "result"))
        return what, self.json_text(self.documents[what], chance)

    def read(self, given: tuple[str, bytes]) -> None:
        from deploycompress.devices import results

        what, text = given
        document = _as_pulled(self.folder, text)
        if what in ("facts", "state"):
            getattr(results, f"read_{what}")(document, "board")
            return
        for name in ("result", "profile", "answers"):
            getattr(results, f"read_{name}")(document, self.JOB, "board")


def _as_pulled(folder: Path, text: bytes) -> Mapping[str, Any]:
    """The bytes on the way that a real device's take: through ``RemoteDevice.pull``, over a link that has them."""
    import hashlib

    from deploycompress.config.devices import SshConfig
    from deploycompress.devices.link import Answer
    from deploycompress.devices.remote import RemoteDevice

    class Held:
        def ask(self, operation: str, data: bytes = b"", **more: Any) -> Answer:
            head = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            return Answer(head, text[more["offset"] : more["offset"] + more["most"]], 0.001)

    device = object.__new__(RemoteDevice)
    device.name, device._where, device._config = "board", "device board", SshConfig(ssh="board")
    device._link = Held()  # type: ignore[assignment]
    return device.pull("0" * 40)
