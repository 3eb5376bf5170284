"""What the fork server imports once, so that no step pays for it again."""

from __future__ import annotations

import contextlib
import importlib

# A first dynamo export costs 8 s in a process that has not imported these.
MODULES = (
    "numpy",
    "torch",
    "torch._dynamo",
    "torch.onnx",
    "torch.onnx._internal.exporter._core",
    "torch.fx.experimental.proxy_tensor",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors.torch",
    "accelerate",
)

for name in MODULES:
    # A step that needs a missing library says so itself, with what to do.
    with contextlib.suppress(ImportError):
        importlib.import_module(name)

with contextlib.suppress(ImportError):
    importlib.import_module("deploycompress.pruning.dependency_graph")
