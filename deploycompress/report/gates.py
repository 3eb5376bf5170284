"""Chooses the run's best artefact, and judges every gate on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploycompress.artifact import Artifact
from deploycompress.config.schema import Gate, TargetConfig
from deploycompress.contracts import MetricInfo
from deploycompress.measure.measurement import Measurement
from deploycompress.report.bounds import verdicts
from deploycompress.report.verdict import Evidence, Verdict

# Where no artefact meets all gates, the choice goes by speed anyway, so these do not rule one out.
SPEED = frozenset(("latency_p50", "latency_p90", "latency_p99", "throughput"))


@dataclass(frozen=True)
class Best:
    artifact: str  # artefact id
    runtime: str


@dataclass(frozen=True)
class Judgement:
    """What was chosen, None when nothing was measured at the target, and each limit's verdict on it."""

    best: Best | None
    verdicts: tuple[Verdict, ...]


def judge(
    gates: Mapping[str, Gate],
    artifacts: Sequence[Artifact],
    measurements: Sequence[Measurement],
    scores: Mapping[str, Sequence[float]],
    baseline_id: str | None,
    primary: MetricInfo,
    target: TargetConfig,
    per_class: Mapping[str, Mapping[str, float]] | None = None,
    by_class: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    figures: Mapping[str, MetricInfo] | None = None,
    other_scores: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    placement: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Judgement:
    """Judge ``gates`` on the best artefact measured at ``target``.

    Best is, among all but the baseline: the fastest (by its paired speed-up, else by p50) that meets every
    gate; else the fastest that meets those which are not about speed; else the fastest that meets the
    accuracy gates; else the fastest that at least fails none of them; else the most accurate. The baseline
    stands in only where nothing else was measured. An inconclusive gate counts as met where its policy is
    ``warn``; ``extend`` is the engine's, which measures for longer, and counts as ``fail`` here.

    ``scores``: artefact id -> one score a test sample, in one order for all. ``per_class``: artefact
    id -> class -> figure; ``by_class`` the same for every figure. ``figures``: what is known of the metrics besides
    the primary one, ``other_scores`` their scores, by artefact id and metric. ``placement``: artefact id -> its
    operators.
    """
    by_id = {a.id: a for a in artifacts}
    rows = {m.artifact: m for m in measurements if at_target(m, by_id.get(m.artifact), target)}
    common = Evidence(
        primary,
        baseline=by_id.get(baseline_id or ""),
        baseline_measurement=rows.get(baseline_id or ""),
        scores=scores,
        per_class=per_class or {},
        by_class=by_class or {},
        figures=figures or {},
        other_scores=other_scores or {},
        placement=placement or {},
        packed_bytes={a.details["of"]: a.bytes for a in artifacts if "of" in a.details},
    )
    judged = {
        id: _all_verdicts(gates, replace(common, artifact=by_id[id], measurement=rows[id]))
        for id in by_id
        if id in rows
    }
    candidates = [id for id in judged if id != baseline_id] or list(judged)
    if not candidates:
        return Judgement(None, _all_verdicts(gates, common))
    base = rows.get(baseline_id or "")
    best = _choose(candidates, judged, rows, primary, None if base is None else base.latency_ms.p50)
    return Judgement(Best(best, rows[best].runtime), judged[best])


def at_target(row: Measurement, artifact: Artifact | None, target: TargetConfig) -> bool:
    """Whether this row of ``artifact`` was measured as the target says; its own precision may be any.

    What was made for one runtime and number of threads, an engine or what ``compile`` chose, counts in those.
    """
    if artifact is None or not row.at_target:
        return False
    if (row.device, row.batch_size) != (target.device, target.batch_size):
        return False
    own = artifact.details
    if "runtime" in own:
        return (row.runtime, row.threads) == (own["runtime"], own.get("threads", target.threads))
    return (row.runtime, row.provider, row.threads) == (target.runtime, target.provider, target.threads)


def _all_verdicts(gates: Mapping[str, Gate], evidence: Evidence) -> tuple[Verdict, ...]:
    return tuple(
        replace(v, only_warns=v.verdict == "inconclusive" and gate.on_inconclusive == "warn")
        for metric, gate in gates.items()
        for v in verdicts(metric, gate, evidence)
    )


def _choose(
    candidates: Sequence[str],
    judged: Mapping[str, Sequence[Verdict]],
    rows: Mapping[str, Measurement],
    primary: MetricInfo,
    base_ms: float | None,
) -> str:
    """``base_ms``: the baseline's p50, which turns paired speed-ups back into latencies."""

    def latency_ms(id: str) -> float:
        # Blocks beside the baseline's: what disturbs the machine for a while disturbs both, and no p50 knows that.
        speedup = rows[id].speedup_vs_target or rows[id].speedup
        return rows[id].latency_ms.p50 if speedup is None or base_ms is None else base_ms / speedup.value

    def badness(id: str) -> tuple[float, float]:
        value = rows[id].metrics.get(primary.name)
        sign = -1 if primary.higher_is_better else 1
        return (float("inf") if value is None else sign * value, latency_ms(id))

    def meets_all(id: str) -> bool:
        return not any(v.blocks for v in judged[id])

    def meets_all_but_speed(id: str) -> bool:
        return not any(v.blocks for v in judged[id] if v.metric not in SPEED)

    def meets_accuracy(id: str) -> bool:
        return not any(v.blocks for v in judged[id] if _is_accuracy(v))

    def fails_no_accuracy(id: str) -> bool:
        return not any(v.verdict == "fail" for v in judged[id] if _is_accuracy(v))

    for fits in (meets_all, meets_all_but_speed, meets_accuracy, fails_no_accuracy):
        fitting = [id for id in candidates if fits(id)]
        if fitting:
            return min(fitting, key=latency_ms)
    return min(candidates, key=badness)


def _is_accuracy(verdict: Verdict) -> bool:
    return verdict.metric in ("accuracy", "worst_class") or verdict.metric.startswith("metric:")
