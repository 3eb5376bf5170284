"""The gates on what a model gets right: the level it reaches, and how much worse it is than the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deploycompress.artifact import Artifact
from deploycompress.config.schema import AccuracyGate
from deploycompress.contracts import MetricInfo
from deploycompress.measure.measurement import Measurement
from deploycompress.report.figures import figure
from deploycompress.report.paired import difference, samples_needed
from deploycompress.report.verdict import Evidence, Ruling, Verdict, absent, ruling


def on_accuracy(metric: str, gate: AccuracyGate, evidence: Evidence) -> Iterator[Verdict]:
    is_primary = metric == "accuracy" or metric == f"metric:{evidence.primary.name}"
    name = evidence.primary.name if is_primary else metric.removeprefix("metric:")
    info = evidence.primary if is_primary else evidence.figures.get(name, evidence.figures.get(_figure(name)))
    bound = _loss_bound(gate, info)
    level, change = _units(gate, info)
    value = _value(name, evidence.artifact, evidence.measurement, evidence)
    before = _value(name, evidence.baseline, evidence.baseline_measurement, evidence)
    for end, wanted in (("min", gate.min), ("max", gate.max)):
        if wanted is not None and value is None:
            yield absent(metric, end, wanted.value, level, f"no {name} was measured on the test split")
        elif wanted is not None and value is not None:
            yield _level(metric, end, wanted.value, value, level, name)
    if gate.max_loss is None:
        return
    allowed = gate.max_loss.value
    if value is None or before is None:
        whose = "the baseline" if value is not None else "the artefact"
        yield absent(metric, bound, allowed, change, f"no {name} of {whose} was measured on the test split")
    elif (pair := _scores(evidence, None if is_primary else name)) is not None:
        yield _paired_loss(metric, bound, allowed, change, pair)
    else:
        loss = before - value if bound == "max_drop" else value - before
        message = f"{name} {_moved(loss, change, bound)}; compared as two plain figures, since {name} has no score for each sample"
        yield Verdict(metric, bound, allowed, loss, change, ruling(loss <= allowed), message)


def _loss_bound(gate: AccuracyGate, metric: MetricInfo | None) -> str:
    """``max_drop`` or ``max_rise``, by which the metric gets worse; the gate says it of one we know nothing of."""
    if metric is not None:
        return "max_drop" if metric.higher_is_better else "max_rise"
    return "max_drop" if gate.max_rise is None else "max_rise"


def _value(
    name: str, artifact: Artifact | None, measurement: Measurement | None, evidence: Evidence
) -> float | None:
    """A metric, or one class's figure: ``recall.3``."""
    if measurement is not None and name in measurement.metrics:
        return measurement.metrics[name]
    classes = {} if artifact is None else evidence.by_class.get(artifact.id, {}).get(_figure(name), {})
    return classes.get(name.rpartition(".")[2])


def _figure(name: str) -> str:
    return name.rpartition(".")[0]


def _scores(evidence: Evidence, other: str | None) -> tuple[Sequence[float], Sequence[float]] | None:
    """The scores of baseline and artefact, sample by sample; of the primary metric, or of an ``other`` one."""
    if evidence.baseline is None or evidence.artifact is None:
        return None
    ids = (evidence.baseline.id, evidence.artifact.id)
    baseline, candidate = (
        evidence.scores.get(id) if other is None else evidence.other_scores.get(id, {}).get(other)
        for id in ids
    )
    return None if not baseline or not candidate else (baseline, candidate)


def _paired_loss(
    metric: str, bound: str, allowed: float, unit: str, pair: tuple[Sequence[float], Sequence[float]]
) -> Verdict:
    """Non-inferiority on the same samples: the worst loss the interval holds against the allowance."""
    baseline, candidate = pair if bound == "max_drop" else ([-s for s in pair[0]], [-s for s in pair[1]])
    try:
        found = difference(baseline, candidate)
    except ValueError as error:
        return absent(metric, bound, allowed, unit, str(error))
    loss, least, worst = 0.0 - found.value, 0.0 - found.high, 0.0 - found.low
    message = f"{_moved(loss, unit, bound)} on {found.samples} samples (95 % interval of the {bound[4:]} {figure(least, unit)} to {figure(worst, unit)})"
    if worst <= allowed:
        verdict: Ruling = "pass"
    elif least > allowed:
        verdict = "fail"
    else:
        verdict = "inconclusive"
        needed = samples_needed(baseline, candidate, allowed)
        advice = (
            f"and no number of them would, as the {bound[4:]} equals the limit"
            if needed is None
            else f"about {_rounded_up(needed):,} would be needed"
        )
        message = f"{message}; cannot be resolved with {found.samples} samples, {advice}"
    return Verdict(metric, bound, allowed, loss, unit, verdict, message, low=least, high=worst)


def on_worst_class(gate: AccuracyGate, evidence: Evidence) -> Iterator[Verdict]:
    """The class that lost most, and the class that does worst; as plain figures."""
    info = evidence.figures.get("worst_class", evidence.primary)
    level, change = _units(gate, info)
    bound = _loss_bound(gate, info)
    ours = {} if evidence.artifact is None else evidence.per_class.get(evidence.artifact.id, {})
    theirs = {} if evidence.baseline is None else evidence.per_class.get(evidence.baseline.id, {})
    sign = 1 if info.higher_is_better else -1
    losses = {name: sign * (theirs[name] - ours[name]) for name in ours if name in theirs}
    if gate.max_loss is not None and not losses:
        yield absent("worst_class", bound, gate.max_loss.value, change, "no figure for each class")
    elif gate.max_loss is not None:
        name, loss = max(losses.items(), key=lambda item: item[1])
        allowed = gate.max_loss.value
        message = f"class {name} lost most: {figure(loss, change)}"
        yield Verdict("worst_class", bound, allowed, loss, change, ruling(loss <= allowed), message)
    for end, wanted in (("min", gate.min), ("max", gate.max)):
        if wanted is not None and not ours:
            yield absent("worst_class", end, wanted.value, level, "no figure for each class")
        elif wanted is not None:
            name, value = (min if end == "min" else max)(ours.items(), key=lambda item: item[1])
            yield _level("worst_class", end, wanted.value, value, level, f"class {name}")


def _units(gate: AccuracyGate, metric: MetricInfo | None) -> tuple[str, str]:
    """The units of a level and of a change; those of a metric we know nothing of follow the limits."""
    if metric is not None:
        share = metric.unit == "share"
    else:
        given = [q for q in (gate.min, gate.max, gate.max_loss) if q is not None]
        share = any(q.dimension in ("percent", "points") for q in given)
    return ("share", "points") if share else ("", "")


def _level(metric: str, bound: str, limit: float, value: float, unit: str, name: str) -> Verdict:
    holds = value >= limit if bound == "min" else value <= limit
    return Verdict(metric, bound, limit, value, unit, ruling(holds), f"{name} is {figure(value, unit)}")


def _moved(loss: float, unit: str, bound: str) -> str:
    """``loss``: how much worse it is, whichever way that is."""
    rose = loss < 0 if bound == "max_drop" else loss > 0
    return f"{'rose' if rose else 'dropped'} by {figure(abs(loss), unit)}"


def _rounded_up(count: int) -> int:
    """Two digits are all that such an extrapolation is worth."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step
