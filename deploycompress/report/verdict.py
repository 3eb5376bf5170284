"""What a verdict says, and what it is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deploycompress.artifact import Artifact
from deploycompress.contracts import MetricInfo
from deploycompress.measure.measurement import Measurement

Ruling = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """One limit of one gate, judged. ``limit`` and ``value`` are in ``unit``'s base unit (see figures)."""

    metric: str  # as in the configuration: accuracy, latency_p50, metric:f1
    bound: str  # which key of it: min, max, max_drop, max_rise, min_speedup, max_ratio
    limit: float | None
    value: float | None
    unit: str
    verdict: Ruling
    message: str
    only_warns: bool = False  # inconclusive, and its policy is to go on
    low: float | None = None  # 95 % interval of the value, where there is one
    high: float | None = None

    @property
    def blocks(self) -> bool:
        return self.verdict == "fail" or (self.verdict == "inconclusive" and not self.only_warns)


@dataclass(frozen=True)
class Evidence:
    """All that is known of one artefact at the target, and of the baseline it is compared with."""

    primary: MetricInfo
    artifact: Artifact | None = None
    measurement: Measurement | None = None
    baseline: Artifact | None = None
    baseline_measurement: Measurement | None = None
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)  # artefact id -> one a sample
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, Mapping[str, float]]] = field(
        default_factory=dict
    )  # artefact id -> figure -> class -> value
    figures: Mapping[str, MetricInfo] = field(default_factory=dict)  # what is known of the other metrics
    other_scores: Mapping[str, Mapping[str, Sequence[float]]] = field(
        default_factory=dict
    )  # artefact id -> metric -> one a sample; of metrics that are not the primary one
    placement: Mapping[str, Sequence[Mapping[str, Any]]] = field(
        default_factory=dict
    )  # artefact id -> its operators, as devices.placement has them
    packed_bytes: Mapping[str, int] = field(
        default_factory=dict
    )  # of the package, by what it holds: its digest


def absent(metric: str, bound: str, limit: float | None, unit: str, why: str) -> Verdict:
    """A gate whose figure does not exist fails, and says why."""
    return Verdict(metric, bound, limit, None, unit, "fail", why)


def ruling(holds: bool) -> Ruling:
    return "pass" if holds else "fail"
