"""A benchmark as text: a table for each batch size, and what the differences are worth."""

from __future__ import annotations

from collections.abc import Iterator

from deploycompress.commands.benchmarking import Benchmarked, Setting
from deploycompress.commands.side_by_side import Row
from deploycompress.measure.intervals import least_effect
from deploycompress.measure.measurement import Speedup
from deploycompress.report.figures import NOTHING, clean, figure, plural
from deploycompress.report.terminal import table

HEAD = ("", "p50", "p90", "p99", "per s", "load", "first", "memory", "size", "speed-up")


def text(found: Benchmarked) -> str:
    """Plain text without colours; names are freed of control characters."""
    facts = found.device
    lines = [f"{clean(facts['name'])}: {clean(facts['cpu'])}, {plural(facts['cores'], 'core')}; {found.mode}"]
    for setting in found.settings:
        lines += ["", *_setting(found, setting)]
    return "\n".join(lines)


def _setting(found: Benchmarked, setting: Setting) -> Iterator[str]:
    inputs = ", ".join(
        f"{clean(name)} {'x'.join(map(str, shape))} {dtype}"
        for name, (dtype, shape) in setting.inputs.items()
    )
    ways = {_way(row) for row in setting.found.rows}
    yield f"batch size {setting.batch_size}: {inputs}" + (f", in {ways.pop()}" if len(ways) == 1 else "")
    measured = setting.found
    rows = []
    for row, given in zip(measured.rows, found.givens, strict=True):
        apart = f" ({_way(row)})" if ways else ""
        verdict = measured.word(row)
        rows.append([*_cells(row, row.id + apart, given.bytes), verdict or "the baseline"])
    if found.aa and measured.again is not None:
        rows.append([*_cells(measured.again, measured.again.id, found.givens[0].bytes), "A/A"])
    if len(rows) == 1:
        rows[0][-1] = ""
    yield from table([[*HEAD, ""], *rows])
    yield from (f"  {clean(line)}" for line in _remarks(setting))


def _way(row: Row) -> str:
    m = row.measurement
    return f"{m.runtime} {m.provider}, {plural(m.threads, 'thread')}"


def _cells(row: Row, name: str, size_bytes: int) -> list[str]:
    m = row.measurement
    times = (m.latency_ms.p50, m.latency_ms.p90, m.latency_ms.p99)
    return [
        clean(name if len(name) <= 48 else "…" + name[-47:]),
        *(figure(ms, "ms") for ms in times),
        figure(row.throughput, ""),
        figure(m.load_ms, "ms"),
        figure(m.first_inference_ms, "ms"),
        figure(m.peak_memory_bytes, "bytes"),
        figure(size_bytes, "bytes"),
        _speedup(row.speedups.get("p50")),
    ]


def _speedup(speedup: Speedup | None) -> str:
    if speedup is None:
        return NOTHING
    return f"{figure(speedup.value, 'x')} ({figure(speedup.low, 'x')} to {figure(speedup.high, 'x')})"


def _counted(row: Row) -> Iterator[str]:
    """What only some machines count."""
    m = row.measurement
    if m.gpu_memory_bytes is not None:
        yield f"{figure(m.gpu_memory_bytes, 'bytes')} of GPU memory"
    if m.energy_mj is not None:
        yield f"{figure(m.energy_mj, 'mJ')} an inference, of all that {', '.join(m.energy_of)} took"


def _remarks(setting: Setting) -> Iterator[str]:
    found = setting.found
    floor = found.floor()
    if floor is not None:
        told = f"noise floor {figure(floor, 'ratio')}: what {found.rows[0].id} differs from itself by"
        yield f"{told}; below {figure(least_effect(floor), 'ratio')} there is nothing to tell"
    for row in found.rows:
        yield from (f"{row.id}: {told}" for told in _counted(row))
    alike = [f"{id} {of:.4f}" for id, of in setting.cosines.items() if isinstance(of, float)]
    if alike:
        yield f"cosine of the outputs with those of {found.rows[0].id}: {', '.join(alike)}"
    yield from (f"warning: {warning}" for warning in setting.warnings)
    yield from (f"note: {note}" for note in setting.notes)
    for row in (*found.rows, *((found.again,) if found.again else ())):
        yield from (f"note: {row.id}: {note}" for note in row.measurement.notes)
