"""What each gate looks at, and how the figure is held against the limit."""

from __future__ import annotations

from collections.abc import Iterator

from deploycompress.artifact import Artifact
from deploycompress.config.schema import (
    AccuracyGate,
    EnergyGate,
    Gate,
    LatencyGate,
    PlacementGate,
    SizeGate,
    ThroughputGate,
)
from deploycompress.measure.measurement import Measurement
from deploycompress.report.accuracy import on_accuracy, on_worst_class
from deploycompress.report.figures import figure
from deploycompress.report.speed import on_energy, on_latency, on_throughput
from deploycompress.report.verdict import Evidence, Verdict, absent, ruling


def verdicts(metric: str, gate: Gate, evidence: Evidence) -> Iterator[Verdict]:
    """One verdict for each limit that ``gate`` sets on ``metric``."""
    if metric == "worst_class" and isinstance(gate, AccuracyGate):
        yield from on_worst_class(gate, evidence)
    elif isinstance(gate, AccuracyGate):
        yield from on_accuracy(metric, gate, evidence)
    elif isinstance(gate, LatencyGate):
        yield from on_latency(metric, gate, evidence)
    elif isinstance(gate, ThroughputGate):
        yield from on_throughput(metric, gate, evidence)
    elif isinstance(gate, EnergyGate):
        yield from on_energy(metric, gate, evidence)
    elif isinstance(gate, SizeGate):
        yield from _size(metric, gate, evidence)
    elif isinstance(gate, PlacementGate):
        yield _placement(metric, gate, evidence)
    else:
        yield absent(metric, "max", None, "", f"nothing in this run measured {metric}")


# ---------------------------------------------------------------- placement


def _placement(metric: str, gate: PlacementGate, evidence: Evidence) -> Verdict:
    """The operators that fell back or only reformat, and are not allowed to by role, operator or provider."""
    rows = evidence.placement.get(evidence.artifact.id) if evidence.artifact is not None else None
    if rows is None:
        return absent(metric, "allow", 0, "", "the runtime does not tell where its operators run")
    against = [r for r in rows if r["role"] and not {r["role"], r["op"], r["provider"]} & set(gate.allow)]
    whole_ms = sum(r["ms"] for r in rows)
    if not against:
        message = f"none of {len(rows)} operators falls back or reformats beyond what is allowed"
        return Verdict(metric, "allow", 0, 0, "", "pass", message)
    share = sum(r["ms"] for r in against) / whole_ms if whole_ms else 0.0
    longest = sorted(against, key=lambda r: -r["ms"])[:3]
    named = ", ".join(f"{r['op']} {r['node']} ({r['role']}, {r['provider']})" for r in longest)
    more = f" and {len(against) - 3} more" if len(against) > 3 else ""
    message = (
        f"{len(against)} of {len(rows)} operators, {figure(share, 'ratio')} of the time: {named}{more}; allow them by "
        "role (fallback, reformat), operator or provider"
    )
    return Verdict(metric, "allow", 0, float(len(against)), "", "fail", message)


# ---------------------------------------------------------------- bytes


def _size(metric: str, gate: SizeGate, evidence: Evidence) -> Iterator[Verdict]:
    """Bytes, as they are and against the baseline's; a limit in bytes under ``max_ratio`` is absolute."""
    value = _bytes(metric, evidence.artifact, evidence.measurement, evidence)
    before = _bytes(metric, evidence.baseline, evidence.baseline_measurement, evidence)
    for wanted in (q for q in (gate.max, gate.max_ratio) if q is not None):
        bound, unit = ("max", "bytes") if wanted.dimension == "bytes" else ("max_ratio", "ratio")
        if value is None or (bound == "max_ratio" and not before):
            whose = "" if value is None else " of the baseline"
            yield absent(metric, bound, wanted.value, unit, f"nothing in this run measured {metric}{whose}")
            continue
        found = float(value) if bound == "max" else value / (before or 1)
        message = f"{figure(value, 'bytes')}"
        if bound == "max_ratio":
            message += f" against {figure(before, 'bytes')}"
        yield Verdict(metric, bound, wanted.value, found, unit, ruling(found <= wanted.value), message)


def _bytes(
    metric: str, artifact: Artifact | None, measurement: Measurement | None, evidence: Evidence
) -> int | None:
    """A baseline is not packed: a package is held against the bytes that it spares whoever downloads it."""
    if metric == "packed_size" and artifact is not None:
        packed = evidence.packed_bytes.get(artifact.sha256)
        return artifact.bytes if packed is None and artifact is evidence.baseline else packed
    if metric == "artifact_size":
        return None if artifact is None else artifact.bytes
    if metric == "peak_memory":
        return None if measurement is None else measurement.peak_memory_bytes
    return None
