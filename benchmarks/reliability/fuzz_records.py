"""Damaged records of steps and runs: manifests, run.json, report.json."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz_mutation import changed_data
from fuzz_subject import Subject

from deploycompress.artifact import Artifact, canonical_json, write_json
from deploycompress.errors import ConfigError, StageFailed


class Manifests(Subject):
    """A step's record in the store (also with its seal made anew), run.json, report.json, and what ships."""

    refuses = (ConfigError, StageFailed)
    KEY: Mapping[str, Any] = {"stage": "train", "config": {"epochs": 3}, "inputs": {"source": ["ab"]}}

    def __init__(self, folder: Path) -> None:
        from deploycompress.engine.store import FileStore, seal

        super().__init__(folder)
        self.store, self.run = FileStore(folder / "store"), folder / "run"
        self.step = self.store.step(self.KEY)
        weights = self.step / "model" / "model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"weights")
        made = Artifact.of("", "checkpoint", weights.parent)
        manifest = {
            "schema": 1,
            "key": self.KEY,
            "artifacts": [made.to_json(self.step)],
            "metrics": {"loss": 0.5},
        }
        self.manifest = manifest | {
            "stage": "train",
            "notes": [],
            "details": {},
            "measurements": [],
            "seconds": 1.0,
        }
        self.record = {
            "schema": 1, "name": "x", "started": "2026-03-14T09:26:53+00:00", "seconds": 1.0, "command": [], "error": None,
            "rehearsal": {"state": "passed", "seconds": 1.0}, "steps": [
                {"id": "train", "stage": "train", "directory": "01-train", "state": "done", "reused": False,
                 "seconds": 1.0, "error": None, "undone": ""}]}  # fmt: skip
        shutil.copytree(self.step, self.run / "01-train")
        (self.run / "config.yaml").write_text("model: {build: deploycompress.examples.cnn:build}\n")
        (self.run / "model.engine").write_bytes(b"engine")
        engine = Artifact.of("engine", "engine", self.run / "model.engine")
        self.shipped = {
            "schema": 1,
            "artifacts": [
                {"file": "model.engine", **engine.to_json(self.run), "inputs": {"x": {"shape": ["batch", 3]}}}
            ],
        }
        self.documents = {
            "stored": self.manifest | {"seal": seal(self.manifest)},
            "run": self.record,
            "shipped": self.shipped,
            "report": _report(engine),
        }

    def good(self) -> list[Any]:
        return [(what, json.dumps(document).encode()) for what, document in self.documents.items()]

    def input(self, chance: random.Random) -> tuple[str, bytes]:
        from deploycompress.engine.store import seal

        what = chance.choice(("stored", "sealed", "run", "shipped", "report"))
        if what == "sealed":
            changed = changed_data(self.manifest, chance, what)
            if isinstance(changed, dict):
                changed["key"] = dict(self.KEY)
                with contextlib.suppress(ValueError):  # an infinite number has no seal
                    changed["seal"] = seal(changed)
            return what, json.dumps(changed).encode()
        return what, self.json_text(self.documents[what], chance)

    def read(self, given: tuple[str, bytes]) -> None:
        what, text = given
        getattr(self, f"read_{what}")(text)

    def read_stored(self, text: bytes) -> None:
        (self.step / "manifest.json").write_bytes(text)
        self._find()
        told = {k: v for k, v in json.loads(text).items() if k != "seal"}
        assert canonical_json(told) == canonical_json(self.manifest), "a changed record was used"

    def read_sealed(self, text: bytes) -> None:
        (self.step / "manifest.json").write_bytes(text)
        self._find()

    def _find(self) -> None:
        """Raises ConfigError with the reason for which the step was set aside, which is put back."""
        aside: list[str] = []
        if self.store.find(self.KEY, aside.append) is None:
            (moved,) = (self.store.root / "quarantine").iterdir()
            moved.rename(self.step)
            raise ConfigError(aside[0])

    def read_run(self, text: bytes) -> None:
        from deploycompress.engine.loading import _chosen

        write_json(self.run / "01-train" / "manifest.json", self.documents["stored"])
        (self.run / "run.json").write_bytes(text)
        _chosen(self.run, None)

    def read_shipped(self, text: bytes) -> None:
        from deploycompress.commands.given import open_given

        (self.run / "manifest.json").write_bytes(text)
        open_given(self.run / "model.engine", "engine")

    def read_report(self, text: bytes) -> None:
        from deploycompress.commands.finished_run import finished_run
        from deploycompress.report.render import terminal_summary

        (self.run / "report.json").write_bytes(text)
        run = finished_run(self.run)
        terminal_summary(run.raw)
        run.file_of(run.best.id)


def _report(engine: Artifact) -> dict[str, Any]:
    latency = {"p50": 1.0, "p90": 1.2, "p99": None, "mean": 1.1, "samples": 100, "seconds": 1.0}
    row = {
        "artifact": "engine",
        "runtime": "tensorrt",
        "device": "local",
        "threads": 1,
        "batch_size": 1,
        "latency_ms": latency,
    }
    row |= {"speedup": {"value": 2.0, "low": 1.9, "high": 2.1}, "metrics": {"accuracy": 0.9}, "notes": ["x"]}
    gate = {
        "metric": "accuracy",
        "limit": 0.01,
        "value": 0.0,
        "verdict": "pass",
        "unit": "points",
        "bound": "max_drop",
    }
    stage = {
        "name": "train",
        "kind": "train",
        "seconds": 1.0,
        "reused": False,
        "metrics": {"loss": 0.5},
        "directory": "01-train",
    }
    return {
        "schema": 1, "name": "x", "verdict": "pass", "exit_code": 0, "stages": [stage, stage | {"kind": "benchmark"}],
        "artifacts": [engine.to_json(engine.path.parent)], "measurements": [row], "gates": [gate], "environment": {"cpu": "x"},
        "best": {"artifact": "engine", "runtime": "tensorrt"}, "baseline": "engine", "ships": [{"artifact": "engine", "file": "model.engine"}],
        "model": {"build": "x:y", "inputs": {"x": {"shape": ["batch", 3]}}}, "primary": {"name": "accuracy"},
    }  # fmt: skip
