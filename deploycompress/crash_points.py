"""Lets a test end the run, or refuse room, at the n-th operation of the writing layer; inert where no test asks.

``DEPLOYCOMPRESS_CRASH_POINTS`` names a folder with ``plan.json``: ``{"at": 17, "group": 4711}`` kills the process
group of the run and the process that gets there, ``{"at": 17, "errno": 28}`` raises that OSError there and at every
operation after it, ``{"when": "rename", "signal": 15, "group": 4711, "at": -1}`` sends a signal to the run's process
at the first point whose line has these words. ``log`` gets a line for each point, of whichever process, in order: its lines are the count.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from pathlib import Path

VARIABLE = "DEPLOYCOMPRESS_CRASH_POINTS"
PLAN, LOG = "plan.json", "log"


def reached(point: str, path: Path) -> None:
    """Called before and after each operation. Raises OSError where that was planned."""
    folder = os.environ.get(VARIABLE)
    if folder:
        _strike(Path(folder), f"{point} {path}")


def _strike(folder: Path, line: str) -> None:
    try:
        plan = json.loads((folder / PLAN).read_text())
    except FileNotFoundError:
        return  # nothing is tried now
    with open(folder / LOG, "a+") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        number = sum(1 for _ in log) + 1
        log.write(line.replace("\n", " ") + "\n")
        log.flush()
        if number == plan["at"] and "group" in plan:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(plan["group"], signal.SIGKILL)
            os.killpg(0, signal.SIGKILL)
        if "signal" in plan and plan["when"] in line:
            (folder / PLAN).unlink()  # once
            os.kill(plan["group"], plan["signal"])
    if "errno" in plan and number >= plan["at"] and line.startswith("before") and " delete " not in line:
        raise OSError(plan["errno"], os.strerror(plan["errno"]), line.rpartition(" ")[2])
