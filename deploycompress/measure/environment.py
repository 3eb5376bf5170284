"""The machine's fingerprint: what a figure depends on besides the artefact.

Standard library alone and Python 3.8 syntax, so that it can travel to a device.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from deploycompress.measure.control_groups import control_groups, cpu_quota

# Features that decide which kernels a runtime takes.
CPU_FLAGS = (
    "sse4_2",
    "avx",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sme",
)
VNNI = frozenset({"avx_vnni", "avx512_vnni"})
BF16_X86 = frozenset({"avx512_bf16", "amx_bf16"})
BF16 = BF16_X86 | {"bf16"}  # Arm's
X86 = ("x86_64", "amd64", "x86", "i686", "i386")
X86_VENDORS = ("GenuineIntel", "AuthenticAMD", "HygonGenuine")
# Flag -> entry and bit of the auxiliary vector: AT_HWCAP is 16, AT_HWCAP2 26 (asm/hwcap.h).
ARM_FEATURES = {
    "asimd": (16, 1),
    "asimddp": (16, 20),
    "sve": (16, 22),
    "i8mm": (26, 13),
    "bf16": (26, 14),
    "sme": (26, 23),
}
TENSORRT = "libnvinfer"  # its library
LIBRARIES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxsim",
    "openvino",
    "nncf",
    "tensorrt",
    "numpy",
    "torchvision",
    "timm",
    "transformers",
)


def environment() -> dict[str, Any]:
    """The machine and the installed versions, as JSON; None where this system does not tell."""
    return {
        "machine": machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": versions(LIBRARIES),
    }


def machine() -> dict[str, Any]:
    """What makes two machines comparable: processor, cores, memory, frequency policy, GPU."""
    return {
        "architecture": platform.machine(),
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "cores": available_cores(),
        "cpu_quota": cpu_quota(control_groups()),
        "memory_bytes": memory_bytes(),
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "gpu": gpu_name(),
        "virtual": "hypervisor" in _cpuinfo("flags").split(),
        "emulated": emulated(),
    }


def emulated() -> bool:
    """Whether another processor plays this one: qemu's user mode, which lets the host's /proc shine through."""
    if platform.machine().lower() not in X86 and _cpuinfo("vendor_id") in X86_VENDORS:
        return True
    first = (_first_line(Path(f"/proc/{os.getppid()}/cmdline")) or "").split("\0")[0]
    return os.path.basename(first).startswith("qemu-")


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Installed versions, without importing anything."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def system_libraries() -> dict[str, str]:
    """Of libraries that Python does not know: the version that the system's package has in the file's name."""
    found = sorted(path.name for path in Path("/usr/lib").glob("*-linux-gnu/libnvinfer.so.*.*.*"))
    return {TENSORRT: ", ".join(name.partition(".so.")[2] for name in found)} if found else {}


def cpu_model() -> str:
    if emulated():
        return platform.machine() + ", emulated"
    name = _cpuinfo("model name") or _first_line(Path("/proc/device-tree/model")) or platform.processor()
    return name or platform.machine()


def cpu_flags() -> list[str]:
    present = _arm_features() if emulated() else set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in CPU_FLAGS if flag in present]


def _arm_features() -> set[str]:
    """What the kernel, or who plays it, tells each process of a 64-bit ARM; empty on another processor."""
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return set()
    tell = ctypes.CDLL(None).getauxval
    tell.restype, tell.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return {name for name, (word, bit) in ARM_FEATURES.items() if tell(word) >> bit & 1}


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    if sys.platform.startswith("linux"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _cpuinfo(key: str) -> str:
    """The first value of ``key`` in /proc/cpuinfo; empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return ""


def _first_line(path: Path) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return lines[0].strip().strip("\0") if lines else None


def gpu_name() -> str | None:
    """The name of the first GPU, from the driver's files: asking CUDA would start it."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    return None
