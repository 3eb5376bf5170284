"""The gates on what was measured while the artefact ran: latency, throughput and energy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deploycompress.config.schema import EnergyGate, LatencyGate, ThroughputGate
from deploycompress.measure.measurement import Measurement
from deploycompress.report.figures import figure, significant
from deploycompress.report.verdict import Evidence, Ruling, Verdict, absent, ruling

SAMPLES_FOR = {"p90": 64, "p99": 662}  # below these a percentile is not supported, and not given
# What may pass a p99: MLPerf inference's shortest valid run, which the benchmark's mode full makes.
LONG_ENOUGH = (1024, 60.0)  # samples, seconds


def on_latency(metric: str, gate: LatencyGate, evidence: Evidence) -> Iterator[Verdict]:
    if gate.max is not None:
        yield _limit(metric, "max", gate.max.value, "ms", evidence)
    if gate.min_speedup is not None:
        yield _limit(metric, "min_speedup", gate.min_speedup, "x", evidence)


def on_throughput(metric: str, gate: ThroughputGate, evidence: Evidence) -> Iterator[Verdict]:
    row = evidence.measurement
    if row is None or row.latency_ms.mean <= 0:
        yield absent(metric, "min", gate.min, "/s", "no latency was measured at the target")
        return
    rate = 1000 * row.batch_size / row.latency_ms.mean
    if (reason := undecided(row)) is not None:
        yield Verdict(metric, "min", gate.min, _shown(row, rate), "/s", "inconclusive", reason)
        return
    message = f"{significant(rate)} inferences a second at batch size {row.batch_size}, one call at a time"
    yield Verdict(metric, "min", gate.min, rate, "/s", ruling(rate >= gate.min), message)


def on_energy(metric: str, gate: EnergyGate, evidence: Evidence) -> Iterator[Verdict]:
    """Millijoules of an inference, as they are and against the baseline's."""
    row, before = evidence.measurement, evidence.baseline_measurement
    for wanted in (q for q in (gate.max, gate.max_ratio) if q is not None):
        bound, unit = ("max", "mJ") if wanted.dimension == "energy" else ("max_ratio", "ratio")
        if row is None or row.energy_mj is None:
            why = "no counter of energy could be read where it ran; on Linux only root reads RAPL's"
            yield absent(metric, bound, wanted.value, unit, why)
            continue
        found, against = row.energy_mj, ""
        if bound == "max_ratio":
            if before is None or not before.energy_mj or before.energy_of != row.energy_of:
                yield absent(metric, bound, wanted.value, unit, "the baseline has no energy to compare with")
                continue
            found, against = found / before.energy_mj, f" against {figure(before.energy_mj, 'mJ')}"
        reason = undecided(row)
        verdict: Ruling = ruling(found <= wanted.value) if reason is None else "inconclusive"
        counted = f"{figure(row.energy_mj, 'mJ')}{against} an inference, of all that {', '.join(row.energy_of)} took"
        yield Verdict(metric, bound, wanted.value, found, unit, verdict, reason or counted)


def undecided(row: Measurement) -> str | None:
    """Why no time of this row decides anything; None where they do."""
    if row.emulated:
        return "the device is emulated, so no time measured on it counts; measure on a real one"
    if row.disturbed:
        told = next((note for note in row.notes if "disturbed" in note), "too many rounds were disturbed")
        return f"{told}; measure again when less else runs on {row.device}"
    return None


def _shown(row: Measurement, value: float) -> float | None:
    return None if row.emulated else value


def _limit(metric: str, bound: str, limit: float, unit: str, evidence: Evidence) -> Verdict:
    percentile = metric.removeprefix("latency_")
    row, baseline = evidence.measurement, evidence.baseline_measurement
    if row is None:
        return absent(metric, bound, limit, unit, "no latency was measured at the target")
    if row.emulated:
        return Verdict(metric, bound, limit, None, unit, "inconclusive", str(undecided(row)))
    latency_ms: float | None = getattr(row.latency_ms, percentile)
    before_ms = None if baseline is None else getattr(baseline.latency_ms, percentile)
    if latency_ms is None:
        needed = SAMPLES_FOR[percentile]
        message = f"{percentile} needs at least {needed} samples; {row.latency_ms.samples} were measured"
        return Verdict(metric, bound, limit, None, unit, "inconclusive", message)
    if bound == "max":
        message = f"{percentile} is {figure(latency_ms, 'ms')} over {row.latency_ms.samples} samples"
        return _decided(
            Verdict(metric, bound, limit, latency_ms, unit, ruling(latency_ms <= limit), message), row
        )
    if evidence.artifact is evidence.baseline:
        message = "nothing but the baseline was measured"
        return Verdict(metric, bound, limit, 1.0, unit, ruling(limit <= 1), message)
    if percentile == "p50":
        return _speedup(metric, limit, row)
    if before_ms is None:
        return absent(metric, bound, limit, unit, f"the baseline has no {percentile}")
    ratio = before_ms / latency_ms
    message = f"{percentile} is {figure(latency_ms, 'ms')} against {figure(before_ms, 'ms')}"
    return _decided(Verdict(metric, bound, limit, ratio, unit, ruling(ratio >= limit), message), row)


def brief(row: Measurement) -> bool:
    """Shorter than what supports a tail, which is what mode full takes."""
    samples, seconds = LONG_ENOUGH
    return row.latency_ms.samples < samples or row.latency_ms.seconds < seconds


def _decided(verdict: Verdict, row: Measurement) -> Verdict:
    """Nothing, where the times decide nothing; and no pass of a p99 that was not measured long enough."""
    samples, seconds = LONG_ENOUGH
    reason = undecided(row)
    if reason is None and verdict.metric == "latency_p99" and verdict.verdict == "pass" and brief(row):
        reason = (
            f"a p99 passes only with {samples:,} samples and {seconds:.0f} s, and these are "
            f"{row.latency_ms.samples:,} and {row.latency_ms.seconds:.1f} s; take `benchmark: {{mode: full}}`"
        )
    if reason is None:
        return verdict
    return replace(verdict, verdict="inconclusive", message=f"{verdict.message}; {reason}")


def _speedup(metric: str, limit: float, row: Measurement) -> Verdict:
    """The interval of the paired block ratios decides; where it straddles the limit, nothing does.

    Against the baseline at the target, also where the artefact runs in another runtime: that is what it replaces.
    The interval knows nothing of what one process of an artefact differs from the next by, so what the baseline
    differed from itself by is added to it.
    """
    speedup = row.speedup_vs_target or row.speedup
    if speedup is None:
        return absent(metric, "min_speedup", limit, "x", "no speed-up was measured against the baseline")
    floor = row.noise_floor or 0.0
    low, high = speedup.low / (1 + floor), speedup.high * (1 + floor)
    verdict: Ruling = "pass" if low >= limit else "fail" if high < limit else "inconclusive"
    message = f"{figure(speedup.value, 'x')} the baseline's speed (95 % interval {figure(speedup.low, 'x')} to {figure(speedup.high, 'x')})"
    if verdict == "inconclusive":
        beside = f", with the noise floor of {figure(floor, 'ratio')}," if floor else ""
        message += f"; the interval{beside} holds the limit, so a longer measurement is needed"
    found = Verdict(
        metric,
        "min_speedup",
        limit,
        speedup.value,
        "x",
        verdict,
        message,
        low=speedup.low,
        high=speedup.high,
    )
    return _decided(found, row)
