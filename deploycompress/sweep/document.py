"""The report of a sweep as one JSON document: trials, Pareto front, importances, costs, the best one under the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from deploycompress import __version__
from deploycompress.measure.environment import environment
from deploycompress.sweep.objectives import SPEEDUP, Objective
from deploycompress.sweep.plan import Sweep
from deploycompress.sweep.study import Study

SCHEMA = 1
BASELINE = "unpruned"  # the network that all trials began with, measured beside each of them

Record = Mapping[str, Any]


def build(
    sweep: Sweep, study: Study, competitors: Sequence[Record], seconds: float, started: datetime, command: str
) -> dict[str, Any]:
    """Everything that report.html shows; ``trials`` and ``competitors`` hold what ``jobs.outcome`` recorded."""
    trials = study.records()
    objectives = sweep.objectives
    measured = [t for t in trials if t["state"] == "complete"]
    rivals = [*_baseline(measured), *(c for c in competitors if c["state"] == "complete")]
    best = best_of(measured, objectives)
    verdict, exit_code = outcome(trials)
    return {
        "schema": SCHEMA,
        "kind": "sweep",
        "name": sweep.config.name,
        "verdict": verdict,
        "exit_code": exit_code,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "command": command,
        "pipeline": sweep.base_config.name,
        "method": "matrix" if sweep.config.matrix else sweep.config.method,
        "paths": [axis.path for axis in sweep.axes],
        "objectives": [asdict(o) for o in objectives],
        "best": None if best is None else best["name"],
        "front": [r["name"] for r in front([*measured, *rivals], objectives)],
        "trials": trials,
        "competitors": [*_baseline(measured), *competitors],
        "importances": study.importances(),
        "costs": costs(trials),
        "environment": {**environment(), "deploycompress": __version__},
    }


def outcome(trials: Sequence[Record]) -> tuple[str, int]:
    """The sweep's verdict and exit code: it passes where a trial meets all gates."""
    if any(t["verdict"] == "pass" for t in trials):
        return "pass", 0
    if any(t["state"] in ("complete", "pruned") for t in trials) or not trials:
        return "fail", 5
    return "error", int(trials[0]["exit_code"]) or 4


def front(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """Those that no other one is as good as in everything and better in something, by the figures themselves."""
    placed = [(r, [o.sign * r["objectives"][o.name]["value"] for o in objectives]) for r in records]

    def beaten(own: Sequence[float]) -> bool:
        return any(
            other != own and all(a >= b for a, b in zip(other, own, strict=True)) for _, other in placed
        )

    return [record for record, own in placed if not beaten(own)]


def best_of(trials: Sequence[Record], objectives: Sequence[Objective]) -> Record | None:
    """Of those that meet all gates the fastest, as within a run; where nothing is about speed, by the first objective."""
    passing = [t for t in trials if t["verdict"] == "pass"]
    speed = [o for o in objectives if o.name.startswith("latency_") or o.name in ("throughput", SPEEDUP)]
    order = [*speed[:1], *objectives]
    if not passing:
        return None
    return max(passing, key=lambda t: [o.sign * t["objectives"][o.name]["value"] for o in order])


def costs(trials: Sequence[Record]) -> dict[str, Any]:
    """Seconds and steps of all trials together; ``saved_seconds``: what steps that were reused had cost once."""
    return {
        "seconds": round(sum(t["seconds"] for t in trials), 3),
        "saved_seconds": round(sum(t["saved_seconds"] for t in trials), 3),
        "steps_made": sum(len(t["made"]) for t in trials),
        "steps_reused": sum(len(t["reused"]) for t in trials),
    }


def _baseline(measured: Sequence[Record]) -> list[dict[str, Any]]:
    """The unpruned network as the first trial measured it, where all trials began with the same one."""
    before = [t["baseline"] for t in measured if t["baseline"] is not None]
    whole = [b for b in before if len(b["objectives"]) == len(measured[0]["objectives"])]
    if not whole or len({b["sha256"] for b in before}) != 1:
        return []
    return [{"name": BASELINE, "state": "complete", "objectives": whole[0]["objectives"], "error": ""}]
