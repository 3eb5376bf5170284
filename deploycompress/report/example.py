"""infer.py: the shortest program that runs what ships, with nothing but numpy and the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploycompress.report.figures import clean
from deploycompress.runtimes.onnxruntime import ORT_PROVIDERS

FILE = "infer.py"
# numpy's name -> an expression for an array of a shape
SAMPLES = {
    "float32": "np.random.rand({shape}).astype(np.float32)",
    "float16": "np.random.rand({shape}).astype(np.float16)",
    "float64": "np.random.rand({shape})",
    "bool": "np.ones(({shape},), bool)",
}
ONNXRUNTIME = """\
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
{level}session = onnxruntime.InferenceSession(str(folder / {file}), options, providers=[{provider}])
outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs)))
"""
OPTIMIZED = (
    "options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is done\n"
)
OPENVINO = """\
settings = {{"INFERENCE_NUM_THREADS": {threads}, "INFERENCE_PRECISION_HINT": {hint}}}
model = openvino.Core().read_model(folder / {file} / "model.xml")
{reshape}model = openvino.compile_model(model, {device}, settings)
outputs = {{port.get_any_name(): value for port, value in model(inputs).items()}}
"""
PYTORCH = """\
of = next(of for of in json.loads((folder / "manifest.json").read_text())["artifacts"] if of["file"] == {file})
options = {options}
with PyTorch().open(folder / {file}, {{**options, "network": {{**of["network"], "search_path": [str(folder)]}}}}) as session:
    session.bind(inputs)()
    outputs = session.fetch()
"""
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def example(entries: Sequence[Mapping[str, Any]], target: Mapping[str, Any]) -> str | None:
    """The program for the first of the manifest's ``entries`` that it can be written for; None where there is none."""
    for entry in entries:
        runtime = entry["details"].get("runtime", "onnxruntime")
        if entry["kind"] in ("onnx", "engine") and runtime == "onnxruntime":
            return _program(entry, target, "onnxruntime", "import onnxruntime", _onnxruntime(entry, target))
        if entry["kind"] == "openvino":
            return _program(entry, target, "openvino", "import openvino", _openvino(entry, target))
        if entry["kind"] == "checkpoint":
            needed = f"deploycompress, and the code of {entry['network']['config']['build']}"
            loaded = "import json\n\nfrom deploycompress.runtimes.pytorch import PyTorch"
            return _program(entry, target, needed, loaded, _pytorch(entry, target))
    return None


def _program(entry: Mapping[str, Any], target: Mapping[str, Any], needed: str, loaded: str, run: str) -> str:
    lines = [
        f'"""Runs {_word(entry["file"])} once, on random inputs: pip install numpy {_word(needed)}; python {FILE}"""',
        "",
        "from pathlib import Path",
        "",
        "import numpy as np",
        loaded,
        "",
        "folder = Path(__file__).parent",
        "inputs = {  # what real ones look like: preprocessing in manifest.json",
        *(f"    {name!r}: {_sample(of, target['batch_size'])}," for name, of in entry["inputs"].items()),
        "}",
        run + "for name, value in outputs.items():",
        "    print(name, value.shape, value.ravel()[:5])",
        "",
    ]
    return "\n".join(lines)


def _sample(of: Mapping[str, Any], batch: int) -> str:
    """Whole numbers are zeros: what a class or a token may be is not known here."""
    sizes = [
        size if isinstance(size, int) else batch if axis == 0 else 16 for axis, size in enumerate(of["shape"])
    ]
    shape = ", ".join(map(str, sizes))
    otherwise = f"np.zeros(({{shape}},), np.{of['dtype'] if of['dtype'].isidentifier() else 'float32'})"
    return SAMPLES.get(of["dtype"], otherwise).format(shape=shape)


def _onnxruntime(entry: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    folder = len(entry["files"]) > 1
    file = entry["file"] + "/model.onnx" if folder else entry["file"]
    provider = entry["details"].get("provider", target["provider"])
    return ONNXRUNTIME.format(
        threads=int(entry["details"].get("threads", target["threads"])),
        level=OPTIMIZED if entry["kind"] == "engine" else "",
        file=repr(file),
        provider=repr(ORT_PROVIDERS.get(provider, provider)),
    )


def _openvino(entry: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    details = entry["details"]
    return OPENVINO.format(
        threads=int(details.get("threads", target["threads"])),
        file=repr(entry["file"]),
        device=repr(str(details.get("provider", "cpu")).upper()),
        reshape="model.reshape({name: value.shape for name, value in inputs.items()})\n"
        if details.get("options", {}).get("static_shapes")
        else "",
        hint=repr(HINTS[details.get("options", {}).get("computes_in", "fp32")]),
    )


def _pytorch(entry: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    details = entry["details"]
    options = {
        "threads": int(details.get("threads", target["threads"])),
        "provider": str(details.get("provider", target["provider"])),
        **details.get("options", {}),
    }
    return PYTORCH.format(file=repr(entry["file"]), options=repr(options))


def _word(text: str) -> str:
    """A file's name in a docstring: nothing there may end it."""
    return clean(text).replace("\\", "/").replace('"', "'")
