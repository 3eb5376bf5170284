"""Counters that a candidate's process reads around its own timed calls: energy, and memory on GPUs.

It travels as a part of the runner: the standard library, Python 3.8 syntax. Energy of processor packages is Linux's
powercap (RAPL; the kernel lets only root read it unless told otherwise), that of GPUs and their memory is NVML.
"""

from __future__ import annotations

import ctypes
import glob
import os
from pathlib import Path
from typing import Any, Dict, List, Tuple

POWERCAP = "/sys/class/powercap"
NVML = "libnvidia-ml.so.1"
NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
TOO_SMALL = 7  # NVML_ERROR_INSUFFICIENT_SIZE
MOST_PROCESSES = 4096

Counters = Dict[str, Tuple[int, int]]  # domain -> microjoules so far, and where the counter begins again


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_v2_t, what nvmlDeviceGetComputeRunningProcesses_v3 fills in."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Gpus:
    """NVML, as far as it tells of this process; without the library, or a driver, there are no GPUs."""

    def __init__(self, library: str = NVML) -> None:
        self.handles: List[Tuple[str, ctypes.c_void_p]] = []
        try:
            self.nvml: Any = ctypes.CDLL(library)
        except OSError:
            return
        count = ctypes.c_uint()
        if self.nvml.nvmlInit_v2() or self.nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
        for number in range(count.value):
            handle = ctypes.c_void_p()
            if not self.nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)):
                self.handles.append((f"gpu-{number}", handle))

    def memory_bytes(self) -> int | None:
        """What this process has on all GPUs now; None where it is on none, or NVML cannot tell processes apart."""
        found = [used for used in map(self._used, (handle for _, handle in self.handles)) if used is not None]
        return sum(found) if found else None

    def energy_uj(self) -> Counters:
        """Of the GPUs that this process is on, whoever else is on them."""
        found: Counters = {}
        for name, handle in self.handles:
            millijoules = ctypes.c_ulonglong()
            if self._used(handle) is not None and not self.nvml.nvmlDeviceGetTotalEnergyConsumption(
                handle, ctypes.byref(millijoules)
            ):
                found[name] = (millijoules.value * 1000, 0)
        return found

    def _used(self, handle: ctypes.c_void_p) -> int | None:
        room = 64
        while room <= MOST_PROCESSES:
            found, count = (ProcessInfo * room)(), ctypes.c_uint(room)
            answer = self.nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), found)
            if answer == 0:
                ours = [p.used_bytes for p in found[: count.value] if p.pid == os.getpid()]
                told = [used for used in ours if used != NOT_AVAILABLE]
                return sum(told) if told else None
            if answer != TOO_SMALL:
                return None
            room *= 4
        return None


def packages_uj(root: str = POWERCAP) -> Counters:
    """Of each processor package that the kernel counts, and lets this user read."""
    found: Counters = {}
    for folder in sorted(glob.glob(os.path.join(root, "intel-rapl:*"))):
        if os.path.basename(folder).count(":") > 1:  # a part of a package, which counts it already
            continue
        try:
            name, now, most = (
                Path(folder, file).read_text().strip()
                for file in ("name", "energy_uj", "max_energy_range_uj")
            )
            if name.startswith("package"):  # and not psys, the whole board, where a laptop has it
                found[name] = (int(now), int(most))
        except (OSError, ValueError):
            continue
    return found


def taken_uj(before: Counters, after: Counters) -> Dict[str, int]:
    """Microjoules of each domain between two readings; a counter may have begun again once."""
    found = {}
    for name, (was, _) in before.items():
        if name in after:
            now, most = after[name]
            found[name] = now - was if now >= was else now - was + most
    return found
