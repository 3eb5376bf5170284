"""Counters of energy and of memory on GPUs: the kernel's files as they are, and NVML's calls by their signatures."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploycompress.devices.counters import Gpus, packages_uj, taken_uj

# What nvml.h (NVML 12) declares, for a machine with two GPUs of which this process is on the second.
NVML = """
#include <string.h>
#include <unistd.h>
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu, compute; } nvmlProcessInfo_v2_t;
static char gpus[2];
static unsigned long long millijoules = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, char **device) { *device = &gpus[index]; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(char *device, unsigned long long *energy) {
    *energy = millijoules += 5; return device == &gpus[1] ? 0 : 3;
}
int nvmlDeviceGetComputeRunningProcesses_v3(char *device, unsigned int *count, nvmlProcessInfo_v2_t *infos) {
    const unsigned int running = 70;
    if (*count < running) { *count = running; return 7; }
    memset(infos, 0, running * sizeof *infos);
    *count = running;
    if (device == &gpus[1]) { infos[69].pid = getpid(); infos[69].used = 3000000; }
    return 0;
}
"""


def domain(root: Path, name: str, called: str, energy_uj: object) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, value in (("name", called), ("energy_uj", energy_uj), ("max_energy_range_uj", 1000)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_packages_are_counted_once_and_the_board_is_not(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 700)
    domain(tmp_path, "intel-rapl:1", "package-1", 20)
    domain(tmp_path, "intel-rapl:0:0", "core", 600)
    domain(tmp_path, "intel-rapl:2", "psys", 9000)
    domain(tmp_path, "intel-rapl:3", "package-3", "not a number")
    assert packages_uj(str(tmp_path)) == {"package-0": (700, 1000), "package-1": (20, 1000)}
    assert packages_uj(str(tmp_path / "nothing")) == {}


def test_a_counter_begins_again_where_it_ends() -> None:
    before = {"package-0": (700, 1000), "package-1": (5, 1000), "gpu-0": (1, 0)}
    after = {"package-0": (100, 1000), "package-1": (25, 1000)}
    assert taken_uj(before, after) == {"package-0": 400, "package-1": 20}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, to build a library with NVML's calls")
def test_a_process_is_found_among_those_on_the_gpus(tmp_path: Path) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(NVML)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    gpus = Gpus(str(library))
    assert gpus.memory_bytes() == 3000000
    before = gpus.energy_uj()
    assert list(before) == ["gpu-1"]
    assert taken_uj(before, gpus.energy_uj()) == {"gpu-1": 5000}


def test_without_nvml_there_are_no_gpus() -> None:
    gpus = Gpus("libnvidia-ml-of-nobody.so.1")
    assert gpus.memory_bytes() is None and gpus.energy_uj() == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the sizes are those of 64-bit Linux")
def test_the_structure_has_the_size_that_nvml_gives_it() -> None:
    from deploycompress.devices.counters import ProcessInfo

    assert ctypes.sizeof(ProcessInfo) == 24
