"""Small ONNX files, and run directories as a run leaves them, for the tests of benchmark and compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.artifact import Artifact, digest_json
from deploycompress.measure.environment import environment
from deploycompress.measure.plan import MODES, Plan

WIDTH = 192


@pytest.fixture
def network():
    return _network


@pytest.fixture
def tokens():
    return _tokens


@pytest.fixture
def run_directory():
    return _run_directory


@pytest.fixture
def shortly(monkeypatch):
    """Real measurements, of a third of a second each."""
    monkeypatch.setitem(MODES, "quick", Plan(12, 25.0, 25.0, 64, 200))


def _network(
    path: Path,
    layers: int = 1,
    *,
    shape: Sequence[int | str] = ("batch", WIDTH),
    name: str = "x",
    seed: int = 0,
    external: str | None = None,
) -> Path:
    """Products with one matrix after the other; the last of ``shape`` is its width."""
    width, generator = int(shape[-1]), np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(
            (generator.standard_normal((width, width)) / width**0.5).astype(np.float32), f"w{i}"
        )
        for i in range(layers)
    ]
    if external is not None:
        weights[0].ClearField("raw_data")
        weights[0].data_location = TensorProto.EXTERNAL
        weights[0].external_data.add(key="location", value=external)
    names = [name, *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    put, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, list(shape)) for n in (name, "y"))
    graph = helper.make_graph(nodes, "net", [put], [out], weights)
    return _saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def _tokens(path: Path) -> Path:
    """Two inputs of tokens: a table of ten rows, in which every id must be found."""
    table = numpy_helper.from_array(np.eye(10, 4, dtype=np.float32) + 1, "table")
    ids, mask = (
        helper.make_tensor_value_info(n, t, ["batch", "sequence"])
        for n, t in (("ids", TensorProto.INT64), ("mask", TensorProto.INT64))
    )
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 4])
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["kept"]),
        helper.make_node("Gather", ["table", "kept"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "net", [ids, mask], [out], [table])
    return _saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def _run_directory(
    path: Path,
    model: Path,
    *,
    scores: Sequence[float] = (1, 0) * 50,
    gates: Sequence[Mapping[str, Any]] = (),
    limits: str = "{}",
    machine: Mapping[str, Any] | None = None,
    speedup: float = 2.0,
    baseline: Path | None = None,
    seed: int = 0,
    name: str = "export",
    threads: int = 1,
) -> Path:
    """A run whose best artefact is ``model``; ``machine`` changes what its report says of the machine."""
    made = []
    for id, file in (("baseline", baseline or model), (name, model)):
        folder = path / f"{len(made):02d}-made"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(file.read_bytes())
        made.append(Artifact.of(id, "onnx", folder / "model.onnx").to_json(path))
    here = environment()
    here = here | {"machine": here["machine"] | dict(machine or {})}

    def row(id: str, p50: float, faster: float | None) -> dict[str, Any]:
        latency = {"p50": p50, "p90": p50, "p99": None, "mean": p50, "samples": 100, "seconds": 1.0}
        interval = None if faster is None else {"value": faster, "low": faster * 0.99, "high": faster * 1.01}
        return {
            "artifact": id,
            "runtime": "onnxruntime",
            "device": "local",
            "provider": "cpu",
            "threads": threads,
            "batch_size": 1,
            "latency_ms": latency,
            "speedup": interval,
            "peak_memory_bytes": 50_000_000,
            "load_ms": 5.0,
            "metrics": {"accuracy": sum(scores) / len(scores)},
        }

    report = {
        "schema": 1,
        "name": "edge",
        "verdict": "pass",
        "exit_code": 0,
        "baseline": "baseline",
        "best": {"artifact": name, "runtime": "onnxruntime"},
        "target": {"device": "local", "runtime": "onnxruntime", "provider": "cpu", "threads": threads},
        "data": {"source": "digits", "test_samples": len(scores)},
        "model": {"inputs": {"x": {"shape": ["batch", WIDTH], "dtype": "float32"}}},
        "stages": [
            {
                "name": "benchmark",
                "kind": "benchmark",
                "seconds": 1.0,
                "reused": False,
                "directory": "07-benchmark",
            }
        ],
        "artifacts": made,
        "measurements": [row("baseline", 1.0, None), row(name, 1 / speedup, speedup)],
        "gates": [{"limit": 1.0, "value": 1.0, "verdict": "pass", **gate} for gate in gates],
        "per_class": {name: {"0": sum(scores) / len(scores), "1": 0.5}},
        "environment": here,
    }
    (path / "report.json").write_text(json.dumps(report))
    (path / "config.yaml").write_text(f"name: edge\ngates: {limits}\n")
    bench = path / "07-benchmark"
    bench.mkdir()
    key = {"digests": {"data": digest_json("digits")}, "task": {"name": "classification"}, "seed": seed}
    (bench / "manifest.json").write_text(json.dumps({"key": key, "details": {"scores": "scores.json"}}))
    (bench / "scores.json").write_text(json.dumps({name: list(scores)}))
    return path
