"""Writes the names and signatures of TensorRT's Python bindings to JSON, on a machine without a GPU.

Only the bindings are installed (tensorrt-cu12-bindings, tensorrt-cu13-bindings), into a folder of their own. They
want TensorRT's libraries, which are made up here with the few C functions that the bindings look for when they are
imported: none of them is called. Needs gcc.

    python tests/runtimes/read_tensorrt_bindings.py tensorrt-cu12-bindings==10.16.* tests/data/tensorrt_10.16.json
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# What the runtime file uses objects of.
CLASSES = (
    "Builder",
    "BuilderFlag",
    "EngineInspector",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProfiler",
    "ITimingCache",
    "LayerInformationFormat",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)


# What the bindings look for in TensorRT's libraries when they are imported.
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def main(requirement: str, destination: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bindings"
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(place),
            requirement,
        ]
        subprocess.run(install, check=True)
        # In a process of its own: two versions cannot be imported into one.
        subprocess.run([sys.executable, __file__, "--read", str(place), destination], check=True)


def read(place: Path, destination: Path) -> None:
    version = next(place.glob("*.dist-info")).name.split("-")[1].removesuffix(".dist")
    (extension,) = place.glob("tensorrt*/tensorrt*.so")
    with tempfile.TemporaryDirectory() as folder:
        make_up(Path(folder), version.split(".")[0])
        spec = importlib.util.spec_from_file_location("tensorrt", extension)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    # nptype is in the package's own Python, which wants the libraries' wheel.
    names = {name for name in dir(module) if not name.startswith("__")}
    names |= set(re.findall(r"^def (\w+)\(", (extension.parent / "__init__.py").read_text(), re.MULTILINE))
    document = {
        "version": version,
        "module": sorted(names),
        "classes": {name: members(getattr(module, name)) for name in CLASSES if hasattr(module, name)},
    }
    destination.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def make_up(folder: Path, major: str) -> None:
    """Libraries with the functions' names and nothing in them."""
    source = folder / "functions.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        file = f"lib{library}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(folder / file), str(source)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(folder / file), mode=ctypes.RTLD_GLOBAL)


def members(owner: type) -> dict[str, list[str]]:
    """Name -> signatures, as the bindings write them into the docstring; none of attributes and values."""
    found = {}
    for name in sorted(dir(owner)):
        if not name.startswith("__") or name == "__init__":
            text = inspect.getdoc(inspect.getattr_static(owner, name)) or ""
            found[name] = re.findall(rf"^(?:\d+\. )?({re.escape(name)}\(.*\).*)$", text, re.MULTILINE)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        read(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(*sys.argv[1:])
