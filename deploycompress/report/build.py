"""Builds report.json's document from the records of a run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deploycompress.artifact import MANIFEST, Artifact, read_json
from deploycompress.config.schema import PipelineConfig
from deploycompress.contracts import MetricInfo, Note
from deploycompress.errors import ConfigError, GateFailed, StageFailed
from deploycompress.measure.measurement import Measurement
from deploycompress.report.distribution import distribution
from deploycompress.report.figures import figure
from deploycompress.report.gates import Judgement, at_target, judge
from deploycompress.report.history import history
from deploycompress.report.paired import difference, interval
from deploycompress.report.shipping import selection
from deploycompress.report.story import Step, lineage, of_zeros, purchases, validation, widths
from deploycompress.report.tried import rows_of
from deploycompress.report.verdict import Verdict

SCHEMA = 1
BASELINE = "baseline"  # the step that the planner adds
ACCURACY = MetricInfo("accuracy", True, "share")  # assumed where no benchmark said what the metric is


def build(config: PipelineConfig, run_dir: Path) -> dict[str, Any]:
    """The report of the run in ``run_dir``: what was made, measured and judged, also of a run that failed.

    Reads run.json and the manifest of every finished step. Tools outside this repository rely on the
    keys; what each holds stands in ``document``. Raises ConfigError where ``run_dir`` holds no run.
    """
    run, steps = _read(run_dir)
    artifacts = {a.id: a for step in steps for a in step.artifacts}
    measurements = [m for step in steps for m in step.measurements]
    bench = next((s for s in reversed(steps) if s.measurements), None)
    details = {} if bench is None else bench.manifest["details"]
    primary = MetricInfo(**details["primary"]) if "primary" in details else ACCURACY
    baseline = details.get("baseline", BASELINE if BASELINE in artifacts else None)
    scores = _scores(bench)
    rivals = _competitors(bench)
    judged = judge(
        config.gates,
        list(artifacts.values()),
        measurements,
        scores,
        baseline,
        primary,
        config.target,
        details.get("per_class"),
        details.get("by_class"),
        {name: MetricInfo(**info) for name, info in details.get("figures", {}).items()},
        _scores(bench, "corrupted"),
        _scores(bench, "placement"),
    )
    error = _error(run)
    verdict, exit_code = _outcome(error, judged)
    chain = lineage(steps, baseline, None if judged.best is None else judged.best.artifact)
    shown = {**artifacts, **{rival.id: rival for rival in rivals}}
    here = {m.artifact: m for m in measurements if at_target(m, shown.get(m.artifact), config.target)}
    remarks = of_zeros(details.get("sparse", {}), config.target.runtime)
    environment = _environment(bench, steps)
    undone = {record["id"] for record in run["steps"] if record.get("undone")}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "name": run["name"],
        "verdict": verdict,
        "exit_code": exit_code,
        "error": error,
        "started": run["started"],
        "seconds": run["seconds"],
        "command": _command(run["command"]),
        "model": {
            "build": config.model.build,
            "inputs": {name: spec.model_dump(mode="json") for name, spec in config.model.inputs.items()},
        },
        "data": {"source": config.data.source, "test_samples": details.get("test_samples")},
        "target": config.target.model_dump(mode="json"),
        "primary": asdict(primary),
        "baseline": baseline,
        "best": None if judged.best is None else asdict(judged.best),
        "gates": [_gate(v, error if judged.best is None else None) for v in judged.verdicts],
        "artifacts": [_artifact(a, run_dir, here.get(a.id)) for a in shown.values()],
        "competitors": [rival.id for rival in rivals],
        "measurements": [
            _measurement(m, step, m is here.get(m.artifact), remarks)
            for step in steps
            for m in step.measurements
        ],
        "differences": _differences(scores, baseline),
        "intervals": {id: asdict(interval(s)) for id, s in scores.items() if s},
        "figures": details.get("figures", {}),
        "per_class": details.get("per_class", {}),
        "by_class": details.get("by_class", {}),
        "stages": _stages(run, steps),
        "rehearsal": run.get("rehearsal"),
        "placement": _scores(bench, "placement"),
        "network": details.get("network"),
        "waterfall": purchases(chain, baseline, artifacts, here, primary.name),
        "validation": validation(steps, chain, primary.name),
        "widths": widths([s for s in steps if s.id not in undone]),
        "tried": rows_of(step.manifest for step in steps if step.id not in undone),
        "environment": environment,
        "history": history(run_dir, run["name"], environment),
    }
    document["ships"] = selection(document)
    return document


# ---------------------------------------------------------------- reading


def _read(run_dir: Path) -> tuple[Mapping[str, Any], list[Step]]:
    path = run_dir / "run.json"
    try:
        run = read_json(path)
        done = [record for record in run["steps"] if record["state"] == "done"]
        steps = []
        for record in done:
            folder = run_dir / record["directory"]
            steps.append(Step.of(read_json(folder / MANIFEST), folder))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{run_dir} holds no readable record of a run ({error}); make one with: deploycompress run"
        ) from error
    return run, steps


def _scores(bench: Step | None, which: str = "scores") -> Mapping[str, Any]:
    """Scores on the test split, a sample each, by artefact id; empty where the task has none.

    ``which``: the file that ``details`` names so; "corrupted" has them by metric under each artefact id, and
    "placement" has operators.
    """
    name = None if bench is None else bench.manifest["details"].get(which)
    if bench is None or not name:
        return {}
    try:
        scores: Mapping[str, Any] = read_json(bench.folder / name)
    except (OSError, json.JSONDecodeError) as error:
        raise StageFailed(f"{bench.id}: its scores in {name} cannot be read back: {error}") from error
    return scores


def _competitors(bench: Step | None) -> list[Artifact]:
    """What the user named to be measured beside what the run made."""
    if bench is None:
        return []
    given = bench.manifest["details"].get("competitors", ())
    return [replace(Artifact.from_json(entry, bench.folder), stage=bench.id) for entry in given]


def _error(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first thing that went wrong, and in which step."""
    for record in run["steps"]:
        if record["error"] is not None:
            return {"step": record["id"], **record["error"]}
    if run.get("error") is not None:
        rehearsal = (run.get("rehearsal") or {}).get("state") == "failed"
        return {"step": "rehearsal" if rehearsal else "", **run["error"]}
    unfinished = [r["id"] for r in run["steps"] if r["state"] != "done"]
    if unfinished:
        message = f"the run ended before {unfinished[0]} was done; run the same command again to go on"
        return {
            "step": unfinished[0],
            "class": "StageFailed",
            "message": message,
            "exit_code": StageFailed.exit_code,
        }
    return None


def _outcome(error: Mapping[str, Any] | None, judged: Judgement) -> tuple[str, int]:
    if error is not None:
        return "error", int(error["exit_code"])
    blocking = {v.verdict for v in judged.verdicts if v.blocks}
    if "fail" in blocking:
        return "fail", GateFailed.exit_code
    if blocking:
        return "inconclusive", GateFailed.exit_code
    return "pass", 0


# ---------------------------------------------------------------- parts


def _gate(verdict: Verdict, stopped_by: Mapping[str, Any] | None) -> dict[str, Any]:
    if stopped_by is None:
        return asdict(verdict)
    place = f" in {stopped_by['step']}" if stopped_by["step"] else ""
    return asdict(verdict) | {"message": f"not measured: the run stopped{place}"}


def _artifact(artifact: Artifact, run_dir: Path, row: Measurement | None) -> dict[str, Any]:
    """The manifest's entry; the benchmark's figures on the test split join its metrics."""
    entry = artifact.to_json(run_dir)
    return entry | {"metrics": {**entry["metrics"], **({} if row is None else row.metrics)}}


def _measurement(row: Measurement, step: Step, here: bool, remarks: Mapping[str, str]) -> dict[str, Any]:
    samples = None if row.samples is None else f"{step.folder.name}/{row.samples}"
    notes = [*row.notes, *([remarks[row.artifact]] if here and row.artifact in remarks else [])]
    if row.speedup_vs_target is not None and row.speedup is not None:
        notes.append(f"{figure(row.speedup.value, 'x')} the speed of the baseline in {row.runtime}")
    told = None if samples is None else distribution(step.folder / str(row.samples))
    return row.to_json() | {"samples": samples, "at_target": here, "notes": notes, "distribution": told}


def _differences(scores: Mapping[str, Sequence[float]], baseline: str | None) -> dict[str, Any]:
    """Artefact id -> paired difference to the baseline on the test split, with its interval."""
    before = scores.get(baseline or "")
    if not before:
        return {}
    others = {id: s for id, s in scores.items() if id != baseline and len(s) == len(before)}
    return {id: asdict(difference(before, s)) for id, s in others.items()}


def _stages(run: Mapping[str, Any], steps: Sequence[Step]) -> list[dict[str, Any]]:
    by_id = {step.id: step.manifest for step in steps}
    return [
        {
            "name": record["id"],
            "kind": record["stage"],
            "state": record["state"],
            "seconds": record["seconds"],
            "reused": record["reused"],
            "metrics": by_id.get(record["id"], {}).get("metrics", {}),
            "parity": by_id.get(record["id"], {}).get("parity", {}),
            "notes": [*by_id.get(record["id"], {}).get("notes", []), *_undone(record)],
            "directory": record["directory"],
            "error": record["error"],
        }
        for record in run["steps"]
    ]


def _undone(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Why a round of a repeat did not go on."""
    reason = record.get("undone")
    return [asdict(Note("decision", reason))] if reason else []


def _environment(bench: Step | None, steps: Sequence[Step]) -> dict[str, Any]:
    """The machine and the versions of the benchmark, or of the last step that finished; the other devices by name."""
    last = bench or (steps[-1] if steps else None)
    if last is None:
        return {}
    devices = last.manifest.get("details", {}).get("devices")
    return dict(last.manifest["environment"]) | ({"devices": devices} if devices else {})


def _command(words: Sequence[str]) -> str:
    """One line that makes this run again; the program by its name, wherever it was installed."""
    if not words:
        return ""
    program = os.path.basename(words[0])
    first = "deploycompress" if program.startswith(("deploycompress", "__main__")) else words[0]
    return shlex.join([first, *words[1:]])
