"""The earlier runs of a name, from the reports that the run directory keeps: figures, verdicts, and whose machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploycompress.errors import ConfigError
from deploycompress.measure.machines import differences
from deploycompress.report.document import Report, check, read

FOLDER = "history"
MOST_RUNS = 19  # before this one


def history(run_dir: Path, name: str, environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last runs of ``name`` before this one, the oldest first, each as ``milestone`` has it.

    A report that cannot be read is left out. ``machine`` says what that run's differs in; empty where it is the same.
    """
    told = []
    for path in sorted((run_dir / FOLDER).glob("*.report.json"))[-MOST_RUNS:]:
        try:
            report = check(read(path))
        except ConfigError:
            continue
        if report.name == name:
            told.append(milestone(report, differences(environment, report.environment)))
    return told


def milestone(report: Report, machine: list[str]) -> dict[str, Any]:
    """One run in the history: its verdict, and the best artefact's figures at the target."""
    row, artefact = report.row(report.best_id), report.artefact(report.best_id)
    return {
        "started": report.started,
        "verdict": report.verdict,
        "best": report.best_id,
        "p50_ms": None if row is None else row.latency_ms.p50,
        "speedup": None if row is None or row.gain is None else row.gain.model_dump(),
        "metric": None if row is None else row.metrics.get(report.primary.name),
        "bytes": None if artefact is None else artefact.bytes,
        "target": report.target.model_dump(),
        "machine": machine,
    }
