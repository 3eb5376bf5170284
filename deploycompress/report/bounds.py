"""What each gate looks at, and how the figure is held against the limit."""

from __future__ import annotations

from collections.abc import Iterator

from deploycompress.artifact import Artifact
from deploycompress.config.schema import (
    AccuracyGate,
    Gate,
    LatencyGate,
    PlacementGate,
    SizeGate,
    ThroughputGate,
)
from deploycompress.measure.measurement import Measurement
from deploycompress.report.accuracy import on_accuracy, on_worst_class
from deploycompress.report.figures import figure, significant
from deploycompress.report.verdict import Evidence, Ruling, Verdict, absent, ruling

SAMPLES_FOR = {"p90": 64, "p99": 662}  # below these a percentile is not supported, and not given


def verdicts(metric: str, gate: Gate, evidence: Evidence) -> Iterator[Verdict]:
    """One verdict for each limit that ``gate`` sets on ``metric``."""
    if metric == "worst_class" and isinstance(gate, AccuracyGate):
        yield from on_worst_class(gate, evidence)
    elif isinstance(gate, AccuracyGate):
        yield from on_accuracy(metric, gate, evidence)
    elif isinstance(gate, LatencyGate):
        yield from _latency(metric, gate, evidence)
    elif isinstance(gate, ThroughputGate):
        yield from _throughput(metric, gate, evidence)
    elif isinstance(gate, SizeGate):
        yield from _size(metric, gate, evidence)
    elif isinstance(gate, PlacementGate):
        yield _placement(metric, gate, evidence)
    else:
        yield absent(metric, "max", None, "", f"nothing in this run measured {metric}")


# ---------------------------------------------------------------- speed


def _latency(metric: str, gate: LatencyGate, evidence: Evidence) -> Iterator[Verdict]:
    if gate.max is not None:
        yield _limit(metric, "max", gate.max.value, "ms", evidence)
    if gate.min_speedup is not None:
        yield _limit(metric, "min_speedup", gate.min_speedup, "x", evidence)


def _limit(metric: str, bound: str, limit: float, unit: str, evidence: Evidence) -> Verdict:
    percentile = metric.removeprefix("latency_")
    row, baseline = evidence.measurement, evidence.baseline_measurement
    latency_ms = None if row is None else getattr(row.latency_ms, percentile)
    before_ms = None if baseline is None else getattr(baseline.latency_ms, percentile)
    if row is None:
        return absent(metric, bound, limit, unit, "no latency was measured at the target")
    if row.emulated:
        return _emulated(metric, bound, limit, unit)
    if latency_ms is None:
        needed = SAMPLES_FOR[percentile]
        message = f"{percentile} needs at least {needed} samples; {row.latency_ms.samples} were measured"
        return Verdict(metric, bound, limit, None, unit, "inconclusive", message)
    if bound == "max":
        message = f"{percentile} is {figure(latency_ms, 'ms')} over {row.latency_ms.samples} samples"
        return Verdict(metric, bound, limit, latency_ms, unit, ruling(latency_ms <= limit), message)
    if evidence.artifact is evidence.baseline:
        message = "nothing but the baseline was measured"
        return Verdict(metric, bound, limit, 1.0, unit, ruling(limit <= 1), message)
    if percentile == "p50":
        return _speedup(metric, limit, evidence)
    if before_ms is None:
        return absent(metric, bound, limit, unit, f"the baseline has no {percentile}")
    ratio = before_ms / latency_ms
    message = f"{percentile} is {figure(latency_ms, 'ms')} against {figure(before_ms, 'ms')}"
    return Verdict(metric, bound, limit, ratio, unit, ruling(ratio >= limit), message)


def _speedup(metric: str, limit: float, evidence: Evidence) -> Verdict:
    """The interval of the paired block ratios decides; where it straddles the limit, nothing does.

    Against the baseline at the target, also where the artefact runs in another runtime: that is what it replaces.
    """
    row = evidence.measurement
    speedup = None if row is None else row.speedup_vs_target or row.speedup
    if speedup is None:
        return absent(metric, "min_speedup", limit, "x", "no speed-up was measured against the baseline")
    verdict: Ruling = "pass" if speedup.low >= limit else "fail" if speedup.high < limit else "inconclusive"
    message = f"{figure(speedup.value, 'x')} the baseline's speed (95 % interval {figure(speedup.low, 'x')} to {figure(speedup.high, 'x')})"
    if verdict == "inconclusive":
        message += "; the interval holds the limit, so a longer measurement is needed"
    low, high = speedup.low, speedup.high
    return Verdict(metric, "min_speedup", limit, speedup.value, "x", verdict, message, low=low, high=high)


def _emulated(metric: str, bound: str, limit: float, unit: str) -> Verdict:
    message = "the device is emulated, so no time measured on it counts; measure on a real one"
    return Verdict(metric, bound, limit, None, unit, "inconclusive", message)


def _throughput(metric: str, gate: ThroughputGate, evidence: Evidence) -> Iterator[Verdict]:
    row = evidence.measurement
    if row is None or row.latency_ms.mean <= 0:
        yield absent(metric, "min", gate.min, "/s", "no latency was measured at the target")
        return
    if row.emulated:
        yield _emulated(metric, "min", gate.min, "/s")
        return
    rate = 1000 * row.batch_size / row.latency_ms.mean
    message = f"{significant(rate)} inferences a second at batch size {row.batch_size}, one call at a time"
    yield Verdict(metric, "min", gate.min, rate, "/s", ruling(rate >= gate.min), message)


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
