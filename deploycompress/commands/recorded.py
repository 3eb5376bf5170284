"""What two reports tell of speed without measuring again, and when that is all there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deploycompress.commands.comparison import MEASURED, SPEED, Line, through_the_baseline
from deploycompress.commands.finished_run import Run
from deploycompress.measure.machines import differences, versions_apart
from deploycompress.registry import DEVICES
from deploycompress.report.document import Row


def apart(base: Run, head: Run) -> str:
    """Why no figure of speed of the one can stand beside the other's; empty where it can."""
    if base.row.batch_size != head.row.batch_size:
        return f"BASE was measured at batch size {base.row.batch_size}, HEAD at {head.row.batch_size}"
    devices = (base.report.target.device, head.report.target.device)
    if devices[0] != devices[1]:
        return f"BASE was measured on the device {devices[0]}, HEAD on {devices[1]}"
    found = differences(base.report.environment, head.report.environment)
    return f"the two runs were measured on different machines ({'; '.join(found)})" if found else ""


def away(head: Run, here: Mapping[str, object]) -> str:
    """Why the device of the runs is not at hand; empty where it is."""
    name = head.report.target.device
    if name not in (
        "local",
        "",
    ):  # a built-in one is asked, and says so itself; a report names no code to be run
        return "" if name in list(DEVICES) else f"the device {name} is not built in"
    found = differences(head.report.environment, here)
    return f"this is not the machine of the two runs ({'; '.join(found)})" if found else ""


def recorded_lines(base: Run, head: Run, reason: str) -> list[Line]:
    """Figures of two times never tell a speed by themselves; two speed-ups over one baseline file do.

    ``reason``: why not even those, from ``apart``.
    """
    units = {"throughput": "/s", "peak_memory": "bytes"}
    why = reason or "measured at different times"
    lines = []
    for metric in MEASURED:
        before, after = _recorded(metric, base.row), _recorded(metric, head.row)
        lines.append(Line(metric, units.get(metric, "ms"), before, after, None, "not compared", why))
    if reason or not _one_baseline(base, head) or base.row.gain is None or head.row.gain is None:
        return lines
    change, verdict = through_the_baseline(base.row.gain, head.row.gain)
    told = "over the same baseline, each in its own run"
    return [replace(lines[0], change=change, verdict=verdict, message=told), *lines[1:]]


def _one_baseline(base: Run, head: Run) -> bool:
    """Whether both were held against the same file, run in the same way by the same version of its runtime."""
    files = [run.report.artefact(run.report.baseline) for run in (base, head)]
    rows = [run.report.row(run.report.baseline) for run in (base, head)]
    if None in files or None in rows or files[0].sha256 != files[1].sha256:  # type: ignore[union-attr]
        return False
    ways = {(r.runtime, r.provider, r.threads) for r in rows if r is not None}
    runtimes = (base.row.runtime, head.row.runtime)
    return len(ways) == 1 and not versions_apart(base.report.environment, head.report.environment, runtimes)


def _recorded(metric: str, row: Row) -> float | None:
    if metric in SPEED and metric != "throughput":
        value: float | None = getattr(row.latency_ms, SPEED[metric])
        return value
    if metric == "throughput":
        return 1000 * row.batch_size / row.latency_ms.mean if row.latency_ms.mean > 0 else None
    return row.peak_memory_bytes if metric == "peak_memory" else row.load_ms
