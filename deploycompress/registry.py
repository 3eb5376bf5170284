"""The tables of everything that can be added with one file and one line: name -> "module:Name"."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from deploycompress.errors import ConfigError
from deploycompress.user_code import REFUSED, user_code_is_refused


class Table(Mapping[str, str]):
    """Built-in names of one kind; ``load`` also takes a user's own ``module:Name``."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, name: str) -> Any:
        """The object behind a built-in name, or behind ``module:Name`` or ``path/file.py:Name``."""
        if name in self._entries:
            return load_reference(self._entries[name])
        if ":" in name:
            return load_reference(name)
        raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(self._entries)}, or module:Name")


STAGES = Table(
    "stage",
    {
        "train": "deploycompress.stages.train:Train",
        "prune": "deploycompress.stages.prune:Prune",
        "factorize": "deploycompress.stages.factorize:Factorize",
        "sparsify": "deploycompress.stages.sparsify:Sparsify",
        "distill": "deploycompress.stages.distill:Distill",
        "export": "deploycompress.stages.export:Export",
        "quantize": "deploycompress.stages.quantize:Quantize",
        "build_engine": "deploycompress.stages.build_engine:BuildEngine",
        "compile": "deploycompress.stages.compile:Compile",
        "pack": "deploycompress.stages.pack:Pack",
        "benchmark": "deploycompress.stages.benchmark:Benchmark",
    },
)

CRITERIA = Table(
    "criterion",
    {
        "magnitude": "deploycompress.pruning.criteria.magnitude:Magnitude",
        "taylor": "deploycompress.pruning.criteria.taylor:Taylor",
        "fisher": "deploycompress.pruning.criteria.fisher:Fisher",
        "hessian": "deploycompress.pruning.criteria.hessian:Hessian",
        "group_norm": "deploycompress.pruning.criteria.group_norm:GroupNorm",
        "lamp": "deploycompress.pruning.criteria.lamp:Lamp",
        "bn_scale": "deploycompress.pruning.criteria.bn_scale:BnScale",
        "fpgm": "deploycompress.pruning.criteria.fpgm:Fpgm",
        "activation": "deploycompress.pruning.criteria.activation:Activation",
        "random": "deploycompress.pruning.criteria.random:Random",
    },
)

ALLOCATIONS = Table(
    "allocation",
    {
        "uniform": "deploycompress.pruning.allocations.uniform:Uniform",
        "global": "deploycompress.pruning.allocations.global_ranking:Global",
        "latency": "deploycompress.pruning.allocations.latency:Latency",
        "isomorphic": "deploycompress.pruning.allocations.isomorphic:Isomorphic",
    },
)

LOSSES = Table(
    "loss",
    {
        "kd": "deploycompress.recovery.losses.kd:SoftLabels",
        "dkd": "deploycompress.recovery.losses.dkd:DecoupledSoftLabels",
        "dist": "deploycompress.recovery.losses.dist:Relations",
        "features": "deploycompress.recovery.losses.features:Features",
        "attention": "deploycompress.recovery.losses.attention:AttentionTransfer",
        "mse": "deploycompress.recovery.losses.mse:SquaredDistance",
        "cosine": "deploycompress.recovery.losses.cosine:Cosine",
        "token_kd": "deploycompress.recovery.losses.token_kd:TokenSoftLabels",
        "pixel_kd": "deploycompress.recovery.losses.pixel_kd:PixelSoftLabels",
    },
)

RUNTIMES = Table(
    "runtime",
    {
        "onnxruntime": "deploycompress.runtimes.onnxruntime:OnnxRuntime",
        "openvino": "deploycompress.runtimes.openvino:OpenVino",
        "tensorrt": "deploycompress.runtimes.tensorrt:TensorRT",
        "pytorch": "deploycompress.runtimes.pytorch:PyTorch",
        "trtexec": "deploycompress.runtimes.trtexec:TrtExec",
        "program": "deploycompress.runtimes.program:Program",
    },
)

# How a runtime's artefacts are made; one without a line here runs the ONNX file as it is.
COMPILERS = Table(
    "compiler",
    {
        "onnxruntime": "deploycompress.graph.compilers.onnxruntime:OnnxRuntimeCompiler",
        "openvino": "deploycompress.graph.compilers.openvino:OpenVinoCompiler",
        "tensorrt": "deploycompress.graph.compilers.tensorrt:TensorRTCompiler",
        "pytorch": "deploycompress.graph.compilers.pytorch:PyTorchCompiler",
    },
)

# ``local`` is a device; the others are kinds of devices, which devices.yaml declares under names of their own.
DEVICES = Table(
    "device",
    {
        "local": "deploycompress.devices.local:Local",
        "ssh": "deploycompress.devices.ssh:Ssh",
        "adb": "deploycompress.devices.adb:Adb",
    },
)

TASKS = Table(
    "task",
    {
        "classification": "deploycompress.data.tasks.classification:Classification",
        "multi_label": "deploycompress.data.tasks.multi_label:MultiLabel",
        "segmentation": "deploycompress.data.tasks.segmentation:Segmentation",
        "detection": "deploycompress.data.tasks.detection:Detection",
        "regression": "deploycompress.data.tasks.regression:Regression",
        "token_classification": "deploycompress.data.tasks.token_classification:TokenClassification",
        "ctc": "deploycompress.data.tasks.ctc:Ctc",
        "ranking": "deploycompress.data.tasks.ranking:Ranking",
        "autoencoder": "deploycompress.data.tasks.autoencoder:Autoencoder",
        "multi_task": "deploycompress.data.tasks.multi_task:MultiTask",
    },
)

DATASETS = Table(
    "data source",
    {
        "digits": "deploycompress.data.datasets.digits:Digits",
        "mnist": "deploycompress.data.datasets.mnist:Mnist",
        "arrays": "deploycompress.data.datasets.arrays:Arrays",
        "image_folder": "deploycompress.data.datasets.image_folder:ImageFolder",
        "image_mask": "deploycompress.data.datasets.image_mask:ImageMask",
        "voc": "deploycompress.data.datasets.voc:Voc",
        "torchvision": "deploycompress.data.datasets.torchvision:Torchvision",
        "csv": "deploycompress.data.datasets.csv_table:CsvTable",
        "wav_folder": "deploycompress.data.datasets.wav_folder:WavFolder",
        "text": "deploycompress.data.datasets.text:Text",
        "huggingface": "deploycompress.data.datasets.huggingface:HuggingFace",
    },
)

FUNCTIONS = Table("function", {})  # of the user's alone

TABLES: tuple[Table, ...] = (
    STAGES,
    CRITERIA,
    ALLOCATIONS,
    LOSSES,
    RUNTIMES,
    COMPILERS,
    DEVICES,
    TASKS,
    DATASETS,
)


# Names of models and data sets, which are no module's.
OF_LIBRARIES = re.compile(r"(torchvision|timm):[\w.-]+", re.ASCII)
EXAMPLES = re.compile(r"deploycompress\.examples(\.\w+)+:\w+", re.ASCII)


def is_own(reference: str) -> bool:
    """Whether ``reference`` names a part that this package brings for pipelines: one of a table, or an example.

    Not any function of it: with arguments of one's choice, some of those write files.
    """
    if OF_LIBRARIES.fullmatch(reference) or EXAMPLES.fullmatch(reference):
        return True
    return any(reference in table.values() for table in TABLES)


def add_to_path(folders: Iterable[str]) -> None:
    """Let user code in ``folders`` be imported, the first folder first, as for a script that lies there."""
    if not user_code_is_refused():
        sys.path[:0] = [folder for folder in folders if folder not in sys.path]


def load_reference(reference: str) -> Any:
    """The object named by ``module:Name`` or ``path/to/file.py:Name``; imports the module.

    Raises ConfigError when the module does not import or has no such name, and where user code is refused.
    """
    place, separator, name = reference.rpartition(":")
    if not separator or not name:
        raise ConfigError(f"{reference!r} is not of the form module:name")
    if user_code_is_refused() and not is_own(reference):
        raise ConfigError(REFUSED.format(reference))
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise ConfigError(
            f"{reference}: importing {place} failed: {type(error).__name__}: {error}"
        ) from error
    try:
        found = getattr(module, name)
    except AttributeError as error:
        raise ConfigError(f"{reference}: {place} has no {name!r}") from error
    ours = str(getattr(found, "__module__", "")).partition(".")[0] == "deploycompress"
    if not ours and (user_code_is_refused() or EXAMPLES.fullmatch(reference)):
        raise ConfigError(f"{reference}: {name!r} is what {place} itself imports, and no part of it")
    return found


def _import_file(path: Path) -> ModuleType:
    name = first = f"deploycompress_user_{path.stem}"
    number = 1
    while (loaded := sys.modules.get(name)) is not None:
        if Path(str(loaded.__file__)).resolve() == path.resolve():
            return loaded
        number += 1  # a file of the same name in another folder: both count as the user's code
        name = f"{first}_{number}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
