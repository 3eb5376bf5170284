"""What INT8 costs in accuracy, on real weights and real images: each scheme, calibrator and repair, image by image.

Published weights as they are; FP32 is the same file before it was quantized, judged on the same images, so that the
difference has an interval (paired). CIFAR-10: 512 training images calibrate, the 10,000 test images (JPEG copy) judge.
MobileNetV1 0.25 at 128 pixels: 200 of the 1,000 photographs calibrate, the other 800 judge.

    python benchmarks/int8_accuracy.py --data DIR --cache DIR
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import real_networks
import torch
from equal_subjects import SUBJECTS

from deploycompress.artifact import write_json
from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.graph.arbiter.building import build_apart, save_feeds
from deploycompress.graph.compilers.recipe import Recipe
from deploycompress.graph.export import export_onnx
from deploycompress.graph.ladder.bias_correction import correct_biases
from deploycompress.graph.ladder.equalization import equalize
from deploycompress.graph.quantization import CALIBRATORS, quantize_dynamic_onnx, quantize_onnx
from deploycompress.graph.simplify import simplify_onnx
from deploycompress.measure.environment import environment
from deploycompress.model.parity import to_numpy
from deploycompress.model.source import SourceModel
from deploycompress.report.paired import difference
from deploycompress.runtimes.onnxruntime import OnnxRuntime
from deploycompress.runtimes.openvino import OpenVino

RESULTS = Path(__file__).parent / "results" / "int8_accuracy.json"
CALIBRATION = {"resnet20": 512, "resnet56": 512, "mobilenet_v1": 200}
BATCH = 50

Feed = Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=CALIBRATION, default=list(CALIBRATION))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    for name in arguments.networks:
        with tempfile.TemporaryDirectory(prefix="int8-") as folder:
            found = run(name, arguments.data, arguments.cache, Path(folder))
        rows = [row for row in rows if row["network"] != name] + found
        write_json(arguments.output, {"environment": environment(), "rows": rows})


def run(name: str, data: Path, cache: Path, folder: Path) -> list[dict[str, Any]]:
    source, calibration, judging, labels = prepared(name, data, cache, folder)
    rows = []
    correct = right(OnnxRuntime(), source, judging, labels)
    print(f"{name}: FP32 {100 * np.mean(correct):.2f} % of {len(labels)}", flush=True)
    for what, make in variants(source, calibration, folder):
        started = time.monotonic()
        path = make()
        seconds = time.monotonic() - started
        runtime = OpenVino() if path.suffix == ".xml" else OnnxRuntime()
        found = right(runtime, path, judging, labels)
        apart = difference(correct, found)
        rows.append(
            {
                "network": name,
                "what": what,
                "fp32": float(np.mean(correct)),
                "int8": float(np.mean(found)),
                "difference": asdict(apart),
                "bytes": sum(
                    p.stat().st_size for p in (path.parent.iterdir() if path.suffix == ".xml" else [path])
                ),
                "fp32_bytes": source.stat().st_size,
                "seconds": seconds,
            }
        )
        print(
            f"  {what:<40} {100 * np.mean(found):6.2f} %  {100 * apart.value:+.2f} pp "
            f"({100 * apart.low:+.2f} to {100 * apart.high:+.2f})  {seconds:.1f} s",
            flush=True,
        )
    return rows


def prepared(
    name: str, data: Path, cache: Path, folder: Path
) -> tuple[Path, list[Feed], list[Feed], np.ndarray]:
    """The FP32 file, batches to calibrate with and to judge with, and the labels of the latter."""
    subject = SUBJECTS[name]
    build = f"{Path(real_networks.__file__).resolve()}:{subject.build}"
    inputs = {"image": InputSpec(shape=("batch", *subject.shape))}
    model = SourceModel(ModelConfig(build=build, inputs=inputs), 0, [Path(__file__).parent])
    module = model.build()
    assert subject.weights is not None
    module.load_state_dict(dict(subject.weights(data)))
    raw, path = folder / "raw.onnx", folder / "fp32.onnx"
    export_onnx(module.eval(), model, raw, feeds=[model.example(1), model.example(5)])
    simplify_onnx(raw, path, [to_numpy(model.example(5))])
    sets = subject.sets(data, cache)
    train, test = sets.train, sets.test
    count = CALIBRATION[name]
    if name == "mobilenet_v1":  # all photographs together, and cut anew
        everything = [s for s in (sets.train, sets.validation, sets.test) if len(s)]
        images = torch.cat([s.inputs for s in everything])
        truth = torch.cat([s.labels for s in everything])
        order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))
        first, rest = order[:count], order[count:]
        chosen, judged, labels = images[first], images[rest], truth[rest]
    else:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]
        chosen, judged, labels = train.inputs[order], test.inputs, test.labels
    ready = subject.preparation.normalise
    return path, list(_batches(chosen, ready)), list(_batches(judged, ready)), labels.numpy()


def _batches(images: torch.Tensor, ready: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[Feed]:
    for start in range(0, len(images), BATCH):
        yield {"image": ready(images[start : start + BATCH]).numpy()}


def variants(source: Path, calibration: list[Feed], folder: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """What is tried, in words, with what makes the file."""
    equal, corrected, both = (folder / f"{n}.onnx" for n in ("equal", "corrected", "both"))
    equalize(source, equal, calibration)
    correct_biases(source, corrected, calibration)
    correct_biases(equal, both, calibration)

    def static(of: Path, number: str, scheme: str, calibrator: str = "minmax") -> Callable[[], Path]:
        path = folder / f"int8-{number}.onnx"
        return lambda: quantize_onnx(of, path, calibration, scheme=scheme, calibrator=calibrator).path

    for scheme in ("u8s8", "s8s8", "u8s8_reduced", "s8s8_symmetric"):
        yield f"{scheme}, minmax", static(source, scheme, scheme)
    for calibrator in CALIBRATORS:
        if calibrator != "minmax":
            yield f"u8s8, {calibrator}", static(source, calibrator, "u8s8", calibrator)
    yield "u8s8, minmax, equalised", static(equal, "equal", "u8s8")
    yield "u8s8, minmax, biases corrected", static(corrected, "corrected", "u8s8")
    yield "u8s8, minmax, both", static(both, "both", "u8s8")
    yield "dynamic", lambda: quantize_dynamic_onnx(source, folder / "dynamic.onnx").path
    save_feeds(calibration, folder / "calibration")
    yield "OpenVINO by NNCF", lambda: _openvino(source, folder)


def _openvino(source: Path, folder: Path) -> Path:
    built = build_apart(Recipe("openvino", "int8"), source, folder / "openvino", folder / "calibration", 600)
    return built.path / "model.xml"


def right(runtime: Any, path: Path, feeds: list[Feed], labels: np.ndarray) -> list[float]:
    """1 for each image whose class it names."""
    with runtime.open(path, {"threads": 2}) as session:
        found = []
        for feed in feeds:
            session.bind(feed)()
            found.append(next(iter(session.fetch().values())).argmax(1))
    return (np.concatenate(found) == labels).astype(float).tolist()


if __name__ == "__main__":
    main()
