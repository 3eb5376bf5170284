"""The gates on what was measured while the artefact ran: latency, throughput and energy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from deploycompress.config.schema import EnergyGate, LatencyGate, ThroughputGate
from deploycompress.measure.measurement import SMEARED, Measurement
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
    calls = 1000 * row.batch_size
    rate = calls / row.latency_ms.mean
    if (reason := undecided(row)) is not None:
        yield Verdict(metric, "min", gate.min, _shown(row, rate), "/s", "inconclusive", reason)
        return
    message = f"{significant(rate)} inferences a second at batch size {row.batch_size}, one call at a time"
    mean = row.intervals.get("mean")
    bounds = None if mean is None else (calls / mean[1], calls / mean[0])
    yield _above(Verdict(metric, "min", gate.min, rate, "/s", ruling(rate >= gate.min), message), bounds, row)


def on_energy(metric: str, gate: EnergyGate, evidence: Evidence) -> Iterator[Verdict]:
    """Millijoules of an inference, as they are and against the baseline's."""
    row, before = evidence.measurement, evidence.baseline_measurement
    for wanted in (q for q in (gate.max, gate.max_ratio) if q is not None):
        bound, unit = ("max", "mJ") if wanted.dimension == "energy" else ("max_ratio", "ratio")
        smeared = None if row is None else next((n for n in row.notes if n.startswith(SMEARED)), None)
        if smeared is not None:
            yield Verdict(metric, bound, wanted.value, None, unit, "inconclusive", smeared)
            continue
        if row is None or row.energy_mj is None:
            why = "no counter of energy could be read where it ran; on Linux only root reads RAPL's"
            yield absent(metric, bound, wanted.value, unit, why)
            continue
        found, against = row.energy_mj, ""
        if bound == "max_ratio" and row.energy_ratio is not None and before is not None and before.energy_mj:
            found, against = row.energy_ratio, f" against {figure(before.energy_mj, 'mJ')}"
        elif bound == "max_ratio":
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
        found = Verdict(metric, bound, limit, latency_ms, unit, ruling(latency_ms <= limit), message)
        return _decided(_below(found, row.intervals.get(percentile), row), row)
    if evidence.artifact is evidence.baseline:
        message = "nothing but the baseline was measured"
        return Verdict(metric, bound, limit, 1.0, unit, ruling(limit <= 1), message)
    if percentile == "p50":
        return _speedup(metric, limit, row)
    if before_ms is None:
        return absent(metric, bound, limit, unit, f"the baseline has no {percentile}")
    beside = row.ratios.get(percentile)
    ratio = before_ms / latency_ms if beside is None else beside.value
    message = f"{percentile} is {figure(latency_ms, 'ms')}, {figure(ratio, 'x')} as fast as the baseline's"
    found = Verdict(metric, bound, limit, ratio, unit, ruling(ratio >= limit), message)
    return _decided(_above(found, None if beside is None else (beside.low, beside.high), row), row)


def _below(found: Verdict, interval: tuple[float, float] | None, row: Measurement) -> Verdict:
    """Of a figure that may be at most the limit: where its interval holds the limit, nothing is decided."""
    return _weighed(found, interval, row, lambda low, high, limit: (high <= limit, low > limit))


def _above(found: Verdict, interval: tuple[float, float] | None, row: Measurement) -> Verdict:
    """The same of one that may be no less than the limit."""
    return _weighed(found, interval, row, lambda low, high, limit: (low >= limit, high < limit))


def _weighed(
    found: Verdict,
    interval: tuple[float, float] | None,
    row: Measurement,
    sides: Callable[[float, float, float], tuple[bool, bool]],
) -> Verdict:
    """By its interval, widened by the noise floor: the blocks of one process know nothing of the next one's."""
    if interval is None or found.limit is None:
        return found
    (low, high), floor = interval, row.noise_floor or 0.0
    passes, fails = sides(low / (1 + floor), high * (1 + floor), found.limit)
    verdict: Ruling = "pass" if passes else "fail" if fails else "inconclusive"
    told = f"{found.message} (95 % interval {figure(low, found.unit)} to {figure(high, found.unit)})"
    if verdict == "inconclusive":
        beside = f", with the noise floor of {figure(floor, 'ratio')}," if floor else ""
        told += f"; the interval{beside} holds the limit, so a longer measurement is needed"
    return replace(found, verdict=verdict, message=told, low=low, high=high)


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
            f"{row.latency_ms.samples:,} and {row.latency_ms.seconds:.1f} s; take `benchmark: {{mode: full}}`, and "
            "`on_inconclusive: extend` where that had too many rounds left out"
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
    message, reached = f"{figure(speedup.value, 'x')} the baseline's speed", ruling(speedup.value >= limit)
    found = Verdict(metric, "min_speedup", limit, speedup.value, "x", reached, message)
    return _decided(_above(found, (speedup.low, speedup.high), row), row)
