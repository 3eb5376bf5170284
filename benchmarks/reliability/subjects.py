"""What is fuzzed: for each kind of file good examples, how one is damaged, and the product's own reader of it."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mutation import changed_bytes, changed_data

from deploycompress.artifact import Artifact, canonical_json, read_json, write_json
from deploycompress.errors import ConfigError, DeployCompressError, EnvironmentMissing, StageFailed

SMALL = """\
name: small
model: {build: deploycompress.examples.cnn:build, args: {width: 4}, inputs: {image: {shape: [batch, 1, 28, 28]}}}
task: &task classification
data: {source: digits, image_size: 28, batch_size: 64}
target: {device: local, runtime: onnxruntime, threads: 2}
stages:
  - train: {epochs: 12, lr: 1e-2}
  - repeat: 2
    stages: [{prune: {target: {macs: 20%}, criterion: taylor}}, {distill: {epochs: 8, loss: [kd, {attention: {weight: 100}}]}}]
    schedule: linear
  - export
  - quantize: {precision: int8, timeout: 5 min}
  - benchmark: {mode: quick}
gates:
  accuracy: {max_drop: 1 pp, on_inconclusive: warn}
  latency_p50: {min_speedup: 3.0}
"""
PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


class Subject(ABC):
    """``refuses``: what the reader may raise; anything else is a finding. Its files lie in ``folder``."""

    refuses: tuple[type[DeployCompressError] | type[ValueError], ...]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def good(self) -> list[Any]:
        """The examples as they are, none of which is refused."""

    @abstractmethod
    def input(self, chance: random.Random) -> Any:
        """A damaged file, or several by name."""

    @abstractmethod
    def read(self, given: Any) -> None:
        """Give it to the product."""

    def json_text(self, document: Any, chance: random.Random) -> bytes:
        """A JSON document, damaged in its structure three times of four, else in its bytes."""
        if chance.random() < 0.75:
            return json.dumps(changed_data(document, chance, type(self).__name__)).encode()
        return changed_bytes(json.dumps(document).encode(), chance)


class Pipeline(Subject):
    """pipeline.yaml, through ``--set`` too; what is accepted reads back as it was."""

    refuses = (ConfigError,)
    SETS = (
        "prune.x.y.z=1",
        "stages.0=3",
        "stages=4",
        "a@b=1",
        "prune@2.target.macs=1",
        "model={}",
        "x",
        "seed=[&a 1, *a]",
    )

    def __init__(self, folder: Path) -> None:
        from deploycompress.config.yaml_file import parse

        super().__init__(folder)
        self.texts = [SMALL.encode()]
        for path in sorted(PIPELINES.glob("*.yaml")):
            if "data: {source: digits" in (text := path.read_text()) or "source: digits" in text:
                self.texts.append(re.sub(r"(?m)^#.*\n|\s+#.*$", "", text).encode())
        self.data = [parse(text.decode(), "seed").data for text in self.texts]

    def good(self) -> list[Any]:
        return [(text, []) for text in self.texts]

    def input(self, chance: random.Random) -> tuple[bytes, list[str]]:
        sets = chance.sample(self.SETS, chance.choice((0, 0, 0, 1, 2)))
        if chance.random() < 0.5:
            return changed_bytes(chance.choice(self.texts), chance), sets
        data = changed_data(chance.choice(self.data), chance, "pipeline")
        return json.dumps(data, ensure_ascii=False).encode(errors="surrogatepass"), sets  # JSON is YAML

    def read(self, given: tuple[bytes, list[str]]) -> None:
        from deploycompress.config.reader import dump, read

        place = self.folder / "pipeline.yaml"
        place.write_bytes(given[0])
        config = read(place, given[1])
        (self.folder / "again.yaml").write_text(dump(config), encoding="utf-8")
        assert read(self.folder / "again.yaml") == config, "what was written of it reads back otherwise"


class Checkpoint(Subject):
    """architecture.json beside good weights: what loads is the model that was saved, or is refused."""

    refuses = (StageFailed, ConfigError)

    def __init__(self, folder: Path) -> None:
        import torch

        from deploycompress.config.schema import InputSpec, ModelConfig
        from deploycompress.model import checkpoint
        from deploycompress.model.source import SourceModel
        from deploycompress.pruning.apply import apply
        from deploycompress.pruning.discovery import find_groups
        from deploycompress.pruning.groups import choose, on_grid

        super().__init__(folder)
        torch.set_num_threads(1)
        inputs = {"image": InputSpec(shape=("batch", 1, 8, 8))}
        build, args = "deploycompress.examples.cnn:build", {"width": 8, "image_size": 8}
        self.model = SourceModel(ModelConfig(build=build, args=args, weights=None, inputs=inputs), 0)
        module = self.model.build()
        groups = on_grid(find_groups(module, self.model).groups, 2)
        scores = {group.id: torch.arange(group.width, dtype=torch.float32) for group in groups}
        apply(module, groups, choose(groups, scores, {group.id: group.grid[0] for group in groups}))
        self.kept = folder / "model"
        checkpoint.save(module, self.kept, self.model)
        self.document = read_json(self.kept / checkpoint.ARCHITECTURE)

    def good(self) -> list[Any]:
        return [json.dumps(self.document).encode()]

    def input(self, chance: random.Random) -> bytes:
        return self.json_text(self.document, chance)

    def read(self, given: bytes) -> None:
        from deploycompress.model import checkpoint

        (self.kept / checkpoint.ARCHITECTURE).write_bytes(given)
        checkpoint.load(self.kept, self.model)


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


class DeviceResult(Subject):
    """result.json and the short answers of a device."""

    refuses = (EnvironmentMissing,)
    JOB: Mapping[str, Any] = {
        "runner": "r" * 64,
        "files": {"m": "m" * 64},
        "candidates": [{"id": "a"}],
        "blocks": 2,
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        state = {
            "time_s": 1.0,
            "load": 0.1,
            "mhz": None,
            "celsius": None,
            "throttled_us": None,
            "stolen_ticks": 3,
        }
        operator = {"op": "Conv", "provider": "cpu", "precision": "fp32", "role": "", "ns": [1, 2]}
        entry = {
            "error": None,
            "blocks_ns": [[1000, 1100], [900]],
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
            "schema": 1,
            "runner": "r" * 64,
            "error": None,
            "files": {"m": "m" * 64},
            "blocks": [state, state],
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


class Onnx(Subject):
    """ONNX files, their first bytes above all: what is refused is refused with ValueError by the safe reader."""

    refuses = (ValueError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "w.bin").write_bytes(bytes(64))
        self.files = [document.SerializeToString() for document in _models()]

    def good(self) -> list[Any]:
        return list(self.files)

    def input(self, chance: random.Random) -> bytes:
        data = chance.choice(self.files)
        if chance.random() < 0.5:  # the head alone
            return changed_bytes(data[:96], chance) + data[96:]
        return changed_bytes(data, chance)

    def read(self, given: bytes) -> None:
        from deploycompress.runtimes import onnx_file

        place = self.folder / "model.onnx"
        place.write_bytes(given)
        try:
            onnx_file.check(place)
        except ValueError as error:
            assert type(error) is ValueError and str(error).startswith(str(place)), (
                f"not its own words: {error!r}"
            )
            raise


def _models() -> list[Any]:
    """A product with its weight inside, one with it in a file beside, and one with subgraph, function and sparse tensor."""
    from onnx import TensorProto, helper

    shape = {"x": ["batch", 3], "y": ["batch", 4]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, of) for name, of in shape.items()]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    inside = helper.make_tensor("w", TensorProto.FLOAT, [3, 4], bytes(48), raw=True)
    beside = TensorProto(
        name="w", dims=[3, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "w.bin"), ("offset", "4"), ("length", "48")):
        beside.external_data.add(key=key, value=value)
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]

    def model(nodes: list[Any], weight: Any, **more: Any) -> Any:
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight], **more)
        made = helper.make_model(graph, opset_imports=versions)
        made.metadata_props.add(key="made", value="here")
        return made

    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [ends[1]], [inside])
    rich = model(
        [product, helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)], inside
    )
    rich.functions.append(helper.make_function("own", "Own", ["x"], ["y"], [product], versions))
    sparse = rich.graph.sparse_initializer.add(dims=[3, 4])
    sparse.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [2]))
    return [model([product], inside), model([product], beside), rich]


SUBJECTS: dict[str, type[Subject]] = {
    "pipeline.yaml": Pipeline,
    "architecture.json": Checkpoint,
    "manifests": Manifests,
    "result.json": DeviceResult,
    "onnx": Onnx,
}
