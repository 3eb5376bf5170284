"""What keeps a machine from being itself while it measures: read between blocks, and judged by round.

It travels as a part of the runner, which makes rounds again by it; the host judges by the same functions what it was
sent. The standard library; Python 3.8 syntax.
"""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

from deploycompress.measure.control_groups import control_groups, throttled_us

STOLEN = 0.05  # share of a core's time that the hypervisor may give to others in a round
SLOWED = 0.95  # of the clock frequency that the same candidate had in its best quarter of the rounds
CROWDED = 0.9  # of the processor time that it had in as long a time there
ENOUGH = 0.5  # share of the rounds asked for that must be undisturbed: the others are then left out
TICKS_PER_S = 100  # of /proc/stat on Linux

DISTURBED = {
    "throttled": "throttled by the control group",
    "stolen": "short of time that other virtual machines had",
    "slowed": "at a lower clock frequency",
    "policy": "with another frequency policy than the round before",
    "crowded": "short of processor time that other processes had",
}


def machine_state() -> Dict[str, Any]:
    """What is read between rounds; None where this system does not tell."""
    celsius = [_number(f) for f in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    known = [c / 1e3 for c in celsius if c is not None]
    return {
        "time_s": time.monotonic(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "celsius": max(known) if known else None,
        "governor": _governor(),
        "throttled_us": throttled_us(control_groups()),
        "stolen_ticks": _stolen_ticks(),
    }


def clock_mhz() -> float | None:
    """The highest frequency of a core just now: read right after a block, while its core still runs so."""
    found = [_number(f) for f in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    known = [f / 1e3 for f in found if f is not None]
    return max(known) if known else None


def disturbances(
    states: Sequence[Dict[str, Any]],
    blocks: Dict[str, List[Dict[str, Any]]],
    candidates: Sequence[Dict[str, Any]],
) -> List[List[str]]:
    """Of each round, the kinds (``DISTURBED``) of what disturbed it; empty where nothing did.

    states: of the machine before the first round and after each. blocks: candidate id -> its block of each round,
    with ``cpu_share`` (processor time over wall time) and ``mhz``. candidates: as the job has them.
    """
    cores = {c["id"]: 1.0 if _computes_here(c) else 0.0 for c in candidates}
    rounds = []
    for number in range(len(states) - 1):
        before, after = states[number], states[number + 1]
        here = [(of[number], of, cores[id]) for id, of in blocks.items()]
        # One tick is a hundredth of a second or next to nothing.
        robbed_ticks = max(1.0, STOLEN * TICKS_PER_S * (after["time_s"] - before["time_s"]))
        found = {
            "throttled": _grown(before, after, "throttled_us") > 0,
            "stolen": _grown(before, after, "stolen_ticks") > robbed_ticks,
            "policy": before["governor"] != after["governor"],
            "slowed": any(_below(block, of, "mhz", SLOWED, 0.0) for block, of, _ in here),
            "crowded": any(_below(block, of, "cpu_share", CROWDED, least) for block, of, least in here),
        }
        rounds.append([kind for kind, so in found.items() if so])
    return rounds


def undisturbed(disturbed: Sequence[Sequence[str]], wanted: int) -> List[int] | None:
    """The rounds that nothing disturbed, by number; None where they are too few of the ``wanted`` ones."""
    quiet = [number for number, kinds in enumerate(disturbed) if not kinds]
    return quiet if len(quiet) >= ENOUGH * wanted else None


def _computes_here(candidate: Dict[str, Any]) -> bool:
    """Whether some thread of it always runs; one that waits for an accelerator, or is not ours to know, may sleep."""
    return candidate["options"]["provider"] == "cpu" and ":" not in candidate["runtime"]


def _below(
    block: Dict[str, Any], of: Sequence[Dict[str, Any]], name: str, share: float, least: float
) -> bool:
    """Whether the block has less than ``share`` of what this candidate has where it has much, or of ``least``.

    What it has much of is the upper quartile: single rounds are above it, at the start of a cool machine or where
    threads happened not to wait for one another.
    """
    known = sorted(b[name] for b in of if b[name] is not None)
    return block[name] is not None and block[name] < share * max(least, known[3 * (len(known) - 1) // 4])


def _grown(before: Dict[str, Any], after: Dict[str, Any], name: str) -> float:
    return 0.0 if before[name] is None or after[name] is None else after[name] - before[name]


def _governor() -> str | None:
    """How the frequency of the cores is set, each way once; None where this system does not tell."""
    found = set()
    for file in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found.add(Path(file).read_text().strip())
        except OSError:
            continue
    return ",".join(sorted(found)) or None


def _stolen_ticks() -> int | None:
    """Time that the hypervisor gave to others, of all cores."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    return int(words[8]) if len(words) > 8 else None


def _number(path: str) -> float | None:
    try:
        return float(Path(path).read_text())
    except (OSError, ValueError):
        return None
