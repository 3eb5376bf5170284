"""What Linux's control groups allow a process of the processors' time, and what they have kept from it.

Of both versions. Standard library alone and Python 3.8 syntax, so that it can travel to a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TOLD, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(told: Path = TOLD, mounted: Path = MOUNTED) -> list[Path]:
    """The folders of the groups whose limits hold for this process, the innermost first.

    Inside a container its own may be all that is mounted, at the top.
    """
    found: list[Path] = []
    try:
        lines = told.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        controllers, _, place = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / "cpu" if controllers else mounted
        names = [name for name in place.split("/") if name not in ("", "..")]
        folders = [top.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]
        found += [folder for folder in folders if (folder / "cpu.stat").is_file()]
    return found


def cpu_quota(groups: Sequence[Path]) -> float | None:
    """Cores' worth of time that the groups allow; None where they set no limit."""
    limits = []
    for group in groups:
        words = _words(group / "cpu.max")
        if not words:  # the first version
            words = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits) if limits else None


def throttled_us(groups: Sequence[Path]) -> int | None:
    """Time for which the groups have kept their processes from running; None where none tells."""
    found = []
    for group in groups:
        words = _words(group / "cpu.stat")
        told = {words[n]: words[n + 1] for n in range(0, len(words) - 1, 2)}
        if "throttled_usec" in told:
            found.append(int(told["throttled_usec"]))
        elif "throttled_time" in told:  # of the first version, in nanoseconds
            found.append(int(told["throttled_time"]) // 1000)
    return sum(found) if found else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return []
