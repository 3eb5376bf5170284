"""A run directory as the engine leaves it: real files, real manifests, figures like those of a real run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploycompress.artifact import Artifact, Kind
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import (
    AccuracyGate,
    DataConfig,
    Gate,
    InputSpec,
    LatencyGate,
    ModelConfig,
    PipelineConfig,
    SizeGate,
    StepConfig,
    TargetConfig,
)
from deploycompress.measure.measurement import Latency, Measurement, Speedup

SAMPLES = 600
STEPS = {
    "model": "model",
    "train": "train",
    "baseline": "export",
    "prune": "prune",
    "distill": "distill",
    "export": "export",
    "quantize": "quantize",
    "build_engine": "build_engine",
    "benchmark": "benchmark",
}
LAYERS = {"stem.conv": (32, 16), "layer1.0.conv1": (32, 16), "layer1.0.conv2": (32, 16)}
LAYERS |= {"layer2.0.conv1": (64, 24), "layer2.0.conv2": (64, 32), "layer3.0.conv1": (128, 48)}
LAYERS |= {"layer3.0.conv2": (128, 56), "head": (10, 10)}


@dataclass(frozen=True)
class Example:
    """What differs between the runs that tests look at."""

    name: str = "digits-edge"
    wrong: Mapping[str, Sequence[int]] = field(  # artefact id -> the test samples it gets wrong
        default_factory=lambda: {"baseline": range(7), "export": range(2, 10), "quantize": range(2, 11)}
    )
    latency_ms: Mapping[str, float] = field(
        default_factory=lambda: {"baseline": 0.862, "export": 0.2243, "quantize": 0.1916}
    )
    gates: Mapping[str, Gate] = field(
        default_factory=lambda: {
            "accuracy": AccuracyGate(max_drop=pp("2 pp"), on_inconclusive="warn"),
            "latency_p50": LatencyGate(min_speedup=3.0),
            "artifact_size": SizeGate(max_ratio=Quantity(0.25, "percent", "25%")),
        }
    )
    fails_at: str | None = None
    exit_code: int = 4
    layers: Mapping[str, tuple[int, int]] = field(default_factory=lambda: LAYERS)
    competitor: float = 0.0  # accuracy of one of another's making beside the run's own; 0: there is none
    earlier: int = 0  # reports in history/, every second one of another machine
    hostile: str = ""  # a text put wherever a model, a device or a user names something


def pp(text: str) -> Quantity:
    return Quantity.parse(text, "points", "number")


def _write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[PipelineConfig, Path]]:
    """``make_run(fails_at="export")`` writes such a run and gives its configuration and directory."""

    def make(**changes: Any) -> tuple[PipelineConfig, Path]:
        run_dir = tmp_path / "run"
        return write_run(run_dir, replace(Example(), **changes))

    return make


def write_run(run_dir: Path, example: Example) -> tuple[PipelineConfig, Path]:
    """The whole directory: a manifest and files for each finished step, and run.json."""
    manifests = _manifests(run_dir, example)
    records = []
    failed = False
    for number, (id, stage) in enumerate(STEPS.items()):
        directory = f"{number:02d}-{id}"
        is_it = id == example.fails_at
        record: dict[str, Any] = {"id": id, "stage": stage, "directory": directory, "state": "done"}
        record |= {"reused": id == "train", "seconds": manifests[id]["seconds"], "error": None}
        if is_it or failed:
            record |= {"state": "failed" if is_it else "not_run", "seconds": 1.25 if is_it else 0.0}
        if is_it:
            message = f"{id}: the exporter refused aten::unique_dim\nin layer2.0 {example.hostile}"
            record["error"] = {"class": "StageFailed", "message": message, "exit_code": example.exit_code}
        failed = failed or is_it
        if not failed:
            _write(run_dir / directory / "manifest.json", manifests[id])
        records.append(record)
    error = next((r["error"] for r in records if r["error"]), None)
    run = {"schema": 1, "name": example.name, "started": "2026-03-14T09:26:53+00:00", "seconds": 142.7}
    run |= {
        "command": ["/usr/local/bin/deploycompress", "run", "pipelines/quick start.yaml"],
        "steps": records,
    }
    run |= {"rehearsal": {"state": "passed", "seconds": 6.2}, "error": error}
    _write(run_dir / "run.json", run)
    _earlier(run_dir, example)
    return _config(example), run_dir


def _config(example: Example) -> PipelineConfig:
    return PipelineConfig(
        name="digits-edge",
        model=ModelConfig(
            build="deploycompress.examples.resnet:build",
            inputs={"image": InputSpec(shape=("batch", 1, 32, 32))},
        ),
        data=DataConfig(source="digits"),
        target=TargetConfig(threads=2),
        stages=tuple(
            StepConfig(stage=stage, id=id, config=StrictModel())
            for id, stage in STEPS.items()
            if id not in ("model", "baseline")
        ),
        gates=dict(example.gates),
    )


def _manifests(run_dir: Path, example: Example) -> dict[str, dict[str, Any]]:
    text = example.hostile
    made: dict[str, Artifact] = {}

    def make(id: str, kind: Kind, size: int, precision: str = "fp32", **details: Any) -> Artifact:
        folder = run_dir / f"{list(STEPS).index(id):02d}-{id}"
        path = folder / ("model/model.safetensors" if kind == "checkpoint" else "model.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_onnx(size) if kind == "onnx" else (id.encode() * size)[:size])
        whole = folder / "model" if kind == "checkpoint" else path
        made[id] = Artifact.of(id, kind, whole, precision=precision, stage=id, details=details)
        return made[id]

    def step(
        id: str, source: str | None, seconds: float, *artifacts: Artifact, **more: Any
    ) -> dict[str, Any]:
        folder = run_dir / f"{list(STEPS).index(id):02d}-{id}"
        given = [] if source is None else [{"id": source, "sha256": made[source].sha256}]
        document: dict[str, Any] = {"schema": 1, "id": id, "stage": STEPS[id], "directory": folder.name}
        document |= {"key": {}, "key_digest": "0" * 64, "inputs": {"source": given}, "seconds": seconds}
        document |= {"artifacts": [a.to_json(folder) for a in artifacts], "metrics": {}, "parity": {}}
        document |= {"measurements": [], "notes": [], "details": {}, "reused": False}
        return document | {"environment": _environment(text)} | more

    steps = {
        "model": step("model", None, 1.9, make("model", "checkpoint", 1_240_000)),
        "train": step(
            "train", "model", 0.03, make("train", "checkpoint", 1_240_000), metrics={"val_accuracy": 0.9944}
        ),
        "baseline": step(
            "baseline",
            "train",
            3.1,
            make("baseline", "onnx", 1_231_400),
            parity={"export_max_abs": 3.1e-6, "export_relative": 2.4e-7, "simplify_relative": 0.0},
        ),
        "prune": step(
            "prune",
            "train",
            6.4,
            make("prune", "checkpoint", 262_000),
            metrics={"val_accuracy": 0.8722, "macs": 2.1e6, "macs_ratio": 0.198, "params": 6.5e4}
            | {"params_ratio": 0.212},
            parity={"masked_relative": 1.3e-7, "checkpoint_relative": 0.0},
            notes=[_note("left_whole", "the classifier's outputs are never pruned", f"head{text}")],
            details={
                "widths": [
                    {"layer": name + text, "before": before, "after": after}
                    for name, (before, after) in example.layers.items()
                ]
            },
        ),
        "distill": step(
            "distill",
            "prune",
            38.2,
            make("distill", "checkpoint", 262_000),
            metrics={"val_accuracy": 0.9917},
        ),
        "export": step(
            "export",
            "distill",
            2.8,
            make("export", "onnx", 257_300),
            parity={"export_max_abs": 2.2e-6, "export_relative": 1.9e-7, "simplify_relative": 8.0e-8},
        ),
        "quantize": step(
            "quantize",
            "export",
            4.6,
            make("quantize", "onnx", 81_900, "int8", scheme="u8s8"),
            parity={"quantize_cosine": 0.99941, "quantize_top1_agreement": 0.9983},
            notes=[_note("decision", f"scheme u8s8: the processor has VNNI {text}")],
        ),
        "build_engine": step(
            "build_engine",
            "export",
            0.2,
            notes=[
                _note("skipped", "TensorRT is not installed; pip install tensorrt, on a machine with a GPU")
            ],
        ),
    }
    steps["benchmark"] = step("benchmark", "export", 31.4, **_benchmark(run_dir, example))
    return steps


@cache
def _onnx(size: int) -> bytes:
    """A real ONNX file of ``size`` bytes; what it lacks is filled up with its description."""
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1024])
    graph = helper.make_graph([helper.make_node("Flatten", ["image"], ["logits"])], "g", [image], [logits])
    opsets = [helper.make_opsetid("", 18)]

    def of(filling: int) -> bytes:
        model = helper.make_model(graph, opset_imports=opsets, doc_string="x" * filling)
        model.metadata_props.add(key="deploycompress.labels", value='["cat","dog"]')
        model.metadata_props.add(key="deploycompress.preprocessing", value='{"kind":"image"}')
        contents: bytes = model.SerializeToString()
        return contents

    contents = of(2 * size - len(of(size)))
    assert len(contents) == size
    return contents


def _benchmark(run_dir: Path, example: Example) -> dict[str, Any]:
    accuracy = {id: 1 - len(wrong) / SAMPLES for id, wrong in example.wrong.items()}
    rows = [
        _row(
            id, threads, example.latency_ms[id], example.latency_ms["baseline"], accuracy[id], example.hostile
        )
        for threads in (2, 1)
        for id in example.wrong
    ]
    scores = {
        id: [0.0 if i in set(wrong) else 1.0 for i in range(SAMPLES)] for id, wrong in example.wrong.items()
    }
    _write(run_dir / "08-benchmark" / "scores.json", scores)
    details: dict[str, Any] = {"baseline": "baseline", "test_samples": SAMPLES, "scores": "scores.json"}
    details["primary"] = {"name": "accuracy", "higher_is_better": True, "unit": "share"}
    known = ("accuracy", True, "share"), ("f1", True, "share"), ("log_loss", False, "")
    details["figures"] = {
        name: {"name": name, "higher_is_better": higher, "unit": unit} for name, higher, unit in known
    }
    details["by_class"] = {
        id: {
            "recall": {"three" + example.hostile: value, "eight": value - 0.02},
            "f1": {"three" + example.hostile: value - 0.01, "eight": value - 0.015},
        }
        for id, value in accuracy.items()
    }
    details["per_class"] = {id: found["recall"] for id, found in details["by_class"].items()}
    if example.competitor:
        path = run_dir / "08-benchmark" / "competitors" / "mobile" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_onnx(150_000))
        details["competitors"] = [Artifact.of("mobile", "onnx", path).to_json(run_dir / "08-benchmark")]
        rows.append(
            _row("mobile", 2, 0.15, example.latency_ms["baseline"], example.competitor, example.hostile)
        )
        right = round(SAMPLES * example.competitor)
        scores["mobile"] = [float(i < right) for i in range(SAMPLES)]
        _write(run_dir / "08-benchmark" / "scores.json", scores)
    for row in rows:
        if row.threads != 2:
            continue
        _write(run_dir / "08-benchmark" / str(row.samples), {"unit": "ns", "blocks": _calls(row.latency_ms)})
    _write(run_dir / "08-benchmark" / "placement.json", _placement(example.hostile))
    details["placement"] = "placement.json"
    return {"measurements": [row.to_json() for row in rows], "details": details}


def _calls(latency: Latency) -> list[list[int]]:
    """Nanoseconds of 16 blocks of 32 calls: most of them as fast as can be, some that take longer."""
    slower = (1.0 + 0.3 * (i / 511) ** 4 for i in range(512))
    calls = [int(1e6 * latency.p50 * (0.99 + share - 1.0)) for share in slower]
    return [calls[i::16] for i in range(16)]


def _placement(text: str) -> dict[str, list[dict[str, Any]]]:
    def row(node: str, op: str, ms: float, layer: str = "", role: str = "") -> dict[str, Any]:
        provider = "CPUExecutionProvider"
        return {"node": node, "op": op, "provider": provider, "precision": "fp32", "role": role} | {
            "ms": ms,
            "layer": layer,
        }

    return {
        "baseline": [
            row("relu_nchwc", "Conv", 0.4, f"stem{text}"),
            row("relu_1_nchwc", "Conv", 0.3, "layer1.conv1"),
            row("node_linear", "Gemm", 0.004, "head"),
        ],
        "quantize": [
            row("image_QuantizeLinear", "QuantizeLinear", 0.01, role="reformat"),
            row("node_conv2d_token_1", "QLinearConv", 0.08, f"stem{text}"),
            row("node_conv2d_1_token_4", "QLinearConv", 0.05, "layer1.conv1"),
            row("node_mean", "ReduceMean", 0.02),
            row("node_linear", "QGemm", 0.006, "head"),
        ],
    }


def _earlier(run_dir: Path, example: Example) -> None:
    """Reports of runs before this one, as they lie in history/; every second one was made on another machine."""
    for number in range(example.earlier):
        p50 = 0.2 + 0.01 * number
        row = _row("quantize", 2, p50, 0.862, 0.98, "").to_json() | {"at_target": True}
        machine = _environment("")["machine"] | ({"cpu": "Other 2 GHz"} if number % 2 else {})
        report = {"schema": 1, "name": example.name, "verdict": "pass" if number % 3 else "fail"}
        report |= {"exit_code": 0, "stages": [], "gates": [], "measurements": [row]}
        report |= {"best": {"artifact": "quantize", "runtime": "onnxruntime"}, "baseline": "baseline"}
        artefact = {
            "id": "quantize",
            "kind": "onnx",
            "path": "m.onnx",
            "sha256": "0",
            "bytes": 90_000 + number,
        }
        report |= {"artifacts": [artefact | {"stage": "quantize", "precision": "int8"}]}
        report |= {"environment": {"machine": machine}, "started": f"2026-02-{number + 1:02d}T09:00:00+00:00"}
        report |= {"target": _config(example).target.model_dump(mode="json")}
        _write(run_dir / "history" / f"2026-02-{number + 1:02d}T090000+0000.report.json", report)


def _row(id: str, threads: int, p50: float, baseline: float, accuracy: float, text: str) -> Measurement:
    p50, baseline = (v * (1 if threads == 2 else 1.7) for v in (p50, baseline))
    ratio = baseline / p50
    return Measurement(
        artifact=id,
        runtime="onnxruntime",
        device="local",
        provider="cpu",
        precision="int8" if id == "quantize" else "fp32",
        threads=threads,
        batch_size=1,
        latency_ms=Latency(p50, p50 * 1.07, None, p50 * 1.02, 512, 512 * p50 / 1000),
        speedup=None if id == "baseline" else Speedup(ratio, ratio * 0.965, ratio * 1.031),
        peak_memory_bytes=int(61e6 + 4e6 * p50),
        load_ms=8.0 + 9 * p50,
        first_inference_ms=3 * p50,
        metrics={"accuracy": accuracy, "f1": accuracy - 0.004, "log_loss": 4 * (1 - accuracy)},
        samples=f"samples/{id}.json",
        notes=(f"2 of 40 blocks were disturbed and measured again {text}",) if id == "quantize" else (),
    )


def _note(kind: str, message: str, subject: str = "") -> dict[str, str]:
    return {"kind": kind, "message": message, "subject": subject}


def _environment(text: str) -> dict[str, Any]:
    machine = {"architecture": "x86_64", "cpu": f"Example 3.1 GHz{text}", "flags": ["avx2"], "cores": 2}
    return {
        "machine": machine | {"cpu_quota": None, "governor": None, "virtual": False},
        "cpu": f"Example 3.1 GHz{text}",
        "cores": 2,
        "features": ["avx2", "avx512_vnni"],
        "memory_bytes": 8_000_000_000,
        "system": "Linux 6.1",
        "python": "3.11.9",
        "packages": {"torch": "2.10.0", "onnxruntime": "1.24.0", "onnx": "1.21.0"},
    }
