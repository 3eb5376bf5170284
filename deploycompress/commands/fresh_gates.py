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
from deploycompress.contracts import MetricInfo
from deploycompress.devices.jobs import Progress, open_device
from deploycompress.measure.measurement import Measurement
from deploycompress.measure.plan import MODES, Mode
from deploycompress.report.bounds import verdicts
from deploycompress.report.verdict import Evidence, Verdict

FRESH = ("latency_p50", "latency_p90", "latency_p99", "throughput", "energy", "peak_memory")


def all_gates(
    head: Run,
    limits: Mapping[str, Gate],
    row: Measurement | None,
    wanted: Mapping[str, Wanted],
    mode: Mode,
    progress: Progress,
) -> list[Verdict]:
    """A verdict for each limit. ``limits``: all of its gates; ``row``: HEAD's best artefact as it was measured now; None where nothing was.

    Where a gate holds it against HEAD's own baseline, the two are measured side by side for that.
    """
    recorded = [Verdict(**gate.model_dump()) for gate in head.report.gates]
    gates = {name: gate for name, gate in limits.items() if name in FRESH}
    if row is None or not gates:
        return recorded
    evidence = _evidence(head, row, gates, wanted, mode, progress)
    fresh = [
        replace(v, only_warns=v.verdict == "inconclusive" and gate.on_inconclusive == "warn")
        for metric, gate in gates.items()
        for v in verdicts(metric, gate, evidence)
    ]
    return [*(v for v in recorded if v.metric not in gates), *fresh]


def _evidence(
    head: Run,
    row: Measurement,
    gates: Mapping[str, Gate],
    wanted: Mapping[str, Wanted],
    mode: Mode,
    progress: Progress,
) -> Evidence:
    primary = MetricInfo(**head.report.primary.model_dump())
    best = _artifact(head, head.best.id)
    baseline = head.report.row(head.report.baseline)
    against = any(
        getattr(gate, bound, None) is not None
        for gate in gates.values()
        for bound in ("min_speedup", "max_ratio")
    )
    if not against or baseline is None:
        return Evidence(primary, artifact=best, measurement=row)
    if baseline.artifact == head.best.id:
        return Evidence(primary, artifact=best, measurement=row, baseline=best, baseline_measurement=row)
    pair = (baseline, head.row)
    givens = [head.file_of(one.artifact) for one in pair]
    candidates = [candidate_of(given, how_of(one)) for given, one in zip(givens, pair, strict=True)]
    feed, _ = feed_for(givens, wanted, head.row.batch_size)
    device = open_device(head.report.target.device or "local")
    found = side_by_side(device, candidates, feed, MODES[mode], progress, again=False)
    before, after = (one.measurement for one in found.rows)
    return Evidence(
        primary,
        artifact=best,
        measurement=after,
        baseline=_artifact(head, baseline.artifact),
        baseline_measurement=before,
    )


def _artifact(head: Run, id: str) -> Artifact:
    return Artifact.from_json(next(a for a in head.raw["artifacts"] if a["id"] == id), head.path)
