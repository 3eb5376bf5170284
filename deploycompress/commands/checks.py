"""The checks behind ``doctor``; none of them imports a framework."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

REQUIRED = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxsim",
    "safetensors",
    "accelerate",
)
EXTRAS = {
    "openvino": ("openvino", "nncf"),
    "vision": ("torchvision", "timm", "pycocotools"),
    "text": ("transformers", "datasets"),
    "sweep": ("optuna",),
    "ray": ("ray",),
    "sign": ("model-signing", "pyopenssl"),
    "track": ("tensorboard", "wandb", "mlflow"),
}
DISK_WANTED_BYTES = 5e9


@dataclass(frozen=True)
class Check:
    state: Literal["ok", "missing", "note"]
    subject: str
    finding: str
    remedy: str = ""


def checks() -> Iterator[Check]:
    """Python, packages, extras, runtimes, processor, memory, disk and store."""
    yield _python()
    for name in REQUIRED:
        found = _version(name)
        yield (
            Check("ok", name, found)
            if found
            else Check("missing", name, "not installed", "pip install deploycompress")
        )
    for extra, names in EXTRAS.items():
        absent = [n for n in names if not _version(n)]
        if absent:
            yield Check(
                "note",
                extra,
                f"{', '.join(absent)} not installed",
                f"pip install 'deploycompress[{extra}]' where you need it",
            )
        else:
            yield Check("ok", extra, ", ".join(f"{n} {_version(n)}" for n in names))
    yield from _runtimes()
    yield from _machine()
    yield from _disk()


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return (
        Check("ok", "python", found)
        if sys.version_info >= (3, 11)
        else Check("missing", "python", found, "use 3.11 or newer")
    )


def _runtimes() -> Iterator[Check]:
    from deploycompress.registry import RUNTIMES

    for name in RUNTIMES:
        reason = RUNTIMES.load(name)().missing()
        yield (
            Check("ok", name, "can run here")
            if reason is None
            else Check("note", name, f"cannot run here: {reason}")
        )


def _machine() -> Iterator[Check]:
    from deploycompress.measure.environment import machine

    facts = machine()
    yield Check("ok", "cpu", f"{facts['cpu']}, {facts['cores']} cores")
    flags = [
        f for f in facts["flags"] if "vnni" in f or f in ("asimddp", "i8mm", "amx_int8", "avx512f", "avx2")
    ]
    fast = any("vnni" in f or f in ("asimddp", "i8mm") for f in flags)
    finding = ", ".join(flags) or "no vector extension known"
    remedy = "" if fast else "INT8 has no dot-product instruction here and may be slower than FP32: measure"
    yield Check("ok" if fast else "note", "int8", finding, remedy)


def _disk() -> Iterator[Check]:
    from deploycompress.engine.store import default_root

    root = default_root()
    place = root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    enough = free >= DISK_WANTED_BYTES
    yield Check(
        "ok" if enough else "note",
        "disk",
        f"{free / 1e9:.1f} GB free for the store",
        "" if enough else "large models need more",
    )
    writable = os.access(place, os.W_OK)
    remedy = "" if writable else "set DEPLOYCOMPRESS_STORE to a folder you may write"
    yield Check("ok" if writable else "missing", "store", str(root), remedy)
    if not os.access(Path.cwd(), os.W_OK):
        yield Check("missing", "runs", f"{Path.cwd()} cannot be written", "use run --out DIR")


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
