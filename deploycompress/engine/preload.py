"""What the fork server imports once, so that no step pays for it again."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import walk_packages

from deploycompress.writing import write_text

READY = "DEPLOYCOMPRESS_SERVER_READY"  # names the file that says that all is imported

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too; the run decides
# The server ends with its run once it serves. While it imports, the kernel sees to it.
_end_with_parent = ctypes.CDLL(None).prctl
_end_with_parent(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

# What a first dynamo export imports on its way (8 s where it starts from nothing), and what every step needs.
LIBRARIES = (
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
    "torch.export._patches",
    "torch.fx.experimental.proxy_tensor",
    "torch.fx.experimental.validator",
    "torch._export.passes.replace_autocast_with_hop_pass",
    "torch._export.passes.replace_set_grad_with_hop_pass",
    "torch._functorch._aot_autograd.subclass_parametrization",
    "torch._inductor.fx_passes.dedupe_symint_uses",
    "sympy.tensor.tensor",
    "networkx",
    "onnx",
    "onnxscript",
    "onnxscript.function_libs.torch_lib.ops",
    "onnxruntime",
    "safetensors.torch",
    "accelerate",
)
OWN = ("config", "data", "devices", "engine", "graph", "measure", "model", "pruning", "recovery", "stages")


def _modules() -> Iterator[str]:
    yield from LIBRARIES
    for room in OWN:
        package = importlib.import_module(f"deploycompress.{room}")
        yield from (module.name for module in walk_packages(package.__path__, f"{package.__name__}."))


gc.disable()  # nothing of what is imported here is garbage
logging.disable(logging.WARNING)  # that torchvision is not installed is nothing for the terminal of the run
for name in _modules():
    # A step that needs a library that is missing, or broken, says so itself, with what to do.
    with contextlib.suppress(Exception):
        importlib.import_module(name)

# The exporter asks onnxscript for its 500 operators at each export, and that compiles their sources each time.
with contextlib.suppress(Exception):
    from torch.onnx._internal import _lazy_import
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    wanted = "get_torchlib_ops"
    getattr(vars(_lazy_import)["onnxscript_apis"], wanted)  # imports the module for this version of torch
    for module in [m for name, m in sys.modules.items() if name.startswith("onnxscript._framework_apis.")]:
        if hasattr(module, wanted):
            setattr(module, wanted, functools.cache(getattr(module, wanted)))
    ONNXRegistry.from_torchlib()

logging.disable(logging.NOTSET)
gc.enable()
gc.freeze()  # else each step looks through half a million objects of the libraries, a quarter of a second each time
_end_with_parent(1, 0)


# When its run is over, the server has nothing to do any more. With torch in it Python takes a second for that, and 15 on
# a busy machine; whoever reads the run's output until its end would wait for it.
def _end_at_once(server: int = os.getpid()) -> None:
    if os.getpid() == server:
        os._exit(0)


atexit.register(_end_at_once)
if READY in os.environ:
    write_text(Path(os.environ[READY]), "")
