"""Memory that is freed is there for the next step, without a page fault."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from deploycompress.recovery.allocation import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def step():
    pieces = [bytearray(2**22) for _ in range(8)]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_step():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, check=True).stdout)
        for how in ("kept", "as it is")
    )
    pages = 10 * 8 * 2**22 // 4096
    assert kept < 0.01 * pages < given_back
