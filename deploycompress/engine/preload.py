"""What the fork server imports once, so that no step pays for it again."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
from pathlib import Path

from deploycompress.writing import write_text

READY = "DEPLOYCOMPRESS_SERVER_READY"  # names the file that says that all is imported

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too; the run decides
_imported = threading.Event()


def _end_with(parent: int) -> None:
    """The server ends with the run that started it once it serves; until then this sees to it."""
    while not _imported.wait(0.2):
        if os.getppid() != parent:
            os._exit(1)


_watching = threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True)
_watching.start()

# What a first dynamo export imports on its way (8 s where it starts from nothing), and what every step needs.
MODULES = (
    "numpy",
    "torch",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._export.non_strict_utils",
    "torch.export._trace",
    "torch.export._unlift",
    "torch.onnx",
    "torch.onnx._internal.exporter._compat",
    "torch.onnx._internal.exporter._core",
    "torch.fx.experimental.proxy_tensor",
    "networkx",
    "onnx",
    "onnxscript",
    "onnxscript.function_libs.torch_lib.ops",
    "onnxruntime",
    "safetensors.torch",
    "accelerate",
    "deploycompress.pruning.discovery",
    "deploycompress.recovery.training",
    "deploycompress.graph.export",
    "deploycompress.model.checkpoint",
)

for name in MODULES:
    # A step that needs a missing library says so itself, with what to do.
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

# The exporter compiles its 500 operators when it is first asked for them, and keeps the result.
with contextlib.suppress(ImportError, AttributeError):
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib()

_imported.set()
_watching.join()  # what it forks from has one thread
if READY in os.environ:
    write_text(Path(os.environ[READY]), "")
