"""HEAD's gates: those on speed and memory judged on what was measured now, the others as its run judged them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deploycompress.artifact import Artifact
from deploycompress.commands.finished_run import Run
from deploycompress.commands.measuring import candidate_of, how_of
from deploycompress.commands.random_inputs import Wanted, feed_for
from deploycompress.commands.side_by_side import side_by_side
from deploycompress.config.schema import Gate
from deploycompress.contracts import Device, MetricInfo
from deploycompress.devices.jobs import Progress
from deploycompress.errors import ConfigError
from deploycompress.measure.measurement import Measurement
from deploycompress.measure.plan import MODES, Mode
from deploycompress.report.bounds import verdicts
from deploycompress.report.document import Row
from deploycompress.report.verdict import Evidence, Verdict

FRESH = ("latency_p50", "latency_p90", "latency_p99", "throughput", "energy", "peak_memory")


def all_gates(
    head: Run,
    limits: Mapping[str, Gate],
    row: Measurement | None,
    wanted: Mapping[str, Wanted],
    mode: Mode,
    device: Device | None,
    progress: Progress,
) -> tuple[list[Verdict], list[str]]:
    """A verdict for each limit, and notes. ``limits``: all of its gates; ``row``: HEAD's best artefact as it was measured now; None where nothing was.

    Where a gate holds it against HEAD's own baseline, the two are measured side by side for that. A p99 that passes
    takes mode full: in mode quick it is left as the run judged it.
    """
    recorded = [Verdict(**gate.model_dump()) for gate in head.report.gates]
    if row is None or device is None:
        return recorded, []
    gates, notes = {name: gate for name, gate in limits.items() if name in FRESH}, []
    if mode == "quick" and gates.pop("latency_p99", None) is not None:
        notes.append("the gate on latency_p99 is as HEAD's run judged it; --mode full measures it anew")
    against = {name for name, gate in gates.items() if _is_relative(gate)}
    baseline, reason = _baseline(head) if against else (None, "")
    if reason:
        gates = {name: gate for name, gate in gates.items() if name not in against}
        notes.append(f"the gates on {', '.join(sorted(against))} are as HEAD's run judged them: {reason}")
    if not gates:
        return recorded, notes
    evidence = _evidence(head, row, baseline, wanted, mode, device, progress)
    before = {(v.metric, v.bound): v for v in recorded}
    fresh = [
        replace(v, only_warns=v.verdict == "inconclusive" and gate.on_inconclusive == "warn")
        for metric, gate in gates.items()
        for v in verdicts(metric, gate, evidence)
    ]
    kept = [v for v in fresh if _says_less(v, before.get((v.metric, v.bound)))]
    if mode == "quick" and kept:
        named = ", ".join(dict.fromkeys(v.metric for v in kept))
        notes.append(
            f"{named}: not decided by mode quick, and as HEAD's run judged it; --mode full measures longer"
        )
        fresh = [before[v.metric, v.bound] if v in kept else v for v in fresh]
    return [*(v for v in recorded if v.metric not in gates), *fresh], notes


def _says_less(fresh: Verdict, recorded: Verdict | None) -> bool:
    """Whether what was measured now decides nothing, and what the run measured, for longer, did."""
    return fresh.verdict == "inconclusive" and recorded is not None and recorded.verdict != "inconclusive"


def _is_relative(gate: Gate) -> bool:
    """Whether a bound of it is one against the baseline."""
    return any(getattr(gate, bound, None) is not None for bound in ("min_speedup", "max_ratio"))


def _baseline(head: Run) -> tuple[Row | None, str]:
    """HEAD's baseline as its run measured it; or None, and why its file cannot be measured now."""
    row = head.report.row(head.report.baseline)
    if row is None or row.artifact == head.best.id:
        return row, ""
    try:
        head.file_of(row.artifact)
    except ConfigError as error:
        return None, str(error)
    return row, ""


def _evidence(
    head: Run,
    row: Measurement,
    baseline: Row | None,
    wanted: Mapping[str, Wanted],
    mode: Mode,
    device: Device,
    progress: Progress,
) -> Evidence:
    primary = MetricInfo(**head.report.primary.model_dump())
    best = _artifact(head, head.best.id)
    if baseline is None:
        return Evidence(primary, artifact=best, measurement=row)
    if baseline.artifact == head.best.id:
        row = replace(row, energy_ratio=None, ratios={})  # which are over BASE's best
        return Evidence(primary, artifact=best, measurement=row, baseline=best, baseline_measurement=row)
    pair = (baseline, head.row)
    givens = [head.file_of(one.artifact) for one in pair]
    candidates = [candidate_of(given, how_of(one), device) for given, one in zip(givens, pair, strict=True)]
    feed, _ = feed_for(givens, wanted, head.row.batch_size)
    found = side_by_side(device, candidates, feed, MODES[mode], progress, again=True)
    before, after = (one.measurement for one in found.rows)
    return Evidence(
        primary,
        artifact=best,
        measurement=replace(after, noise_floor=found.floor()),
        baseline=_artifact(head, baseline.artifact),
        baseline_measurement=before,
    )


def _artifact(head: Run, id: str) -> Artifact:
    return Artifact.from_json(next(a for a in head.raw["artifacts"] if a["id"] == id), head.path)
