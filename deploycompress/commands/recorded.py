"""What two reports tell of speed without measuring again, and when that is all there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deploycompress.commands.comparison import MEASURED, SPEED, Line, through_the_baseline
from deploycompress.commands.finished_run import Run
from deploycompress.config.devices import LOCAL
from deploycompress.contracts import Device
from deploycompress.measure.machines import differences, versions_apart
from deploycompress.report.document import Row


def apart(base: Run, head: Run) -> str:
    """Why no figure of speed of the one can stand beside the other's; empty where it can."""
    if base.row.batch_size != head.row.batch_size:
        return f"BASE was measured at batch size {base.row.batch_size}, HEAD at {head.row.batch_size}"
    devices = (device_of(base), device_of(head))
    if devices[0] != devices[1]:
        return f"BASE was measured on the device {devices[0]}, HEAD on {devices[1]}"
    found = differences(_machine(base), _machine(head))
    return f"the two runs were measured on different machines ({'; '.join(found)})" if found else ""


def device_of(run: Run) -> str:
    """The name of the device that its target is."""
    return run.report.target.device or LOCAL


def away(head: Run, device: Device | None) -> str:
    """Why ``device``, reached by the name of the runs' one, cannot measure for them; empty where it can."""
    name = device_of(head)
    if device is None:
        return f"the device {name} is not known here: give --devices FILE, in which it is declared"
    found = differences(_machine(head), {"machine": device.facts()})
    where = "this" if name == LOCAL else f"the device {name}"
    return f"{where} is not the machine of the two runs ({'; '.join(found)})" if found else ""


def _machine(run: Run) -> Mapping[str, Any]:
    """What the report says of the machine that measured: this one's own, or the device's."""
    environment, name = run.report.environment, device_of(run)
    if name == LOCAL:
        return environment
    devices = environment.get("devices")
    return {"machine": devices.get(name) if isinstance(devices, Mapping) else None}


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
