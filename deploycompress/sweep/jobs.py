"""One run of a sweep, a trial or a competitor: its folder, its pipeline.yaml, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploycompress.artifact import MANIFEST, read_json, write_json, write_text
from deploycompress.config import reader as pipelines
from deploycompress.config.device_file import FILE, dump_devices
from deploycompress.config.schema import PipelineConfig
from deploycompress.engine import directory
from deploycompress.errors import ConfigError, DeployCompressError, StageFailed
from deploycompress.report.document import check
from deploycompress.sweep.objectives import Objective, Value, value_of
from deploycompress.sweep.schema import Competitor
from deploycompress.sweep.study import Trial
from deploycompress.writing import clear

PIPELINE, JOB, PROGRESS, OUTCOME, OUTPUT = (
    "pipeline.yaml",
    "job.json",
    "progress.jsonl",
    "outcome.json",
    "output.txt",
)


@dataclass(frozen=True, eq=False)
class Job:
    """A run that is to be made in ``folder``: a trial's, or a competitor's, which has no trial."""

    folder: Path
    trial: Trial | None = None
    competitor: str = ""

    @property
    def name(self) -> str:
        return f"trial {self.trial.number}" if self.trial is not None else self.competitor


def prepare(
    job: Job, config: PipelineConfig, search_path: Sequence[str], store: Path, rehearsal: bool
) -> None:
    """Write what the run's process reads: a plain pipeline.yaml, its devices, and where to look and keep."""
    directory.mark(job.folder)
    write_text(job.folder / PIPELINE, pipelines.dump(config))
    if config.devices:
        write_text(job.folder / FILE, dump_devices(config.devices))
    for name in (PROGRESS, OUTCOME):
        clear(job.folder / name)
    given = {"search_path": list(search_path), "store": str(store), "rehearsal": rehearsal}
    write_json(job.folder / JOB, given)


def competing(base: PipelineConfig, competitor: Competitor, name: str) -> PipelineConfig:
    """The base with another network and nothing that compresses; its train steps where it has no weights.

    Raises ConfigError where nothing would be measured.
    """
    made = () if competitor.weights is not None else ("train",)
    kept = [step for step in base.stages if step.stage in (*made, "export", "benchmark")]
    first = next((step for step in kept if step.stage == "export"), None)
    steps = [s for s in kept if s.stage != "export" or s is first]
    if competitor.weights is None and not any(s.stage == "train" for s in steps):
        raise ConfigError(
            f"competitors: {competitor.name}: it has no weights, and the base no train step that could make them; give weights"
        )
    model = base.model.model_copy(
        update={
            "build": competitor.build or base.model.build,
            "args": competitor.args,
            "weights": competitor.weights,
            "expect": {},
            "tolerance": None,
        }
    )
    plain = [step.model_copy(update={"source": None}) for step in steps]
    return base.model_copy(update={"name": name, "model": model, "stages": tuple(plain)})


def with_head(config: PipelineConfig, which: str, search_path: Sequence[str]) -> str:
    """The text of the best pipeline, and how to run it where its modules lie beside the base."""
    head = f"# {which} of the sweep, complete: it needs neither the sweep nor the base pipeline.\n"
    builds = [config.model.build, config.data.source, *(step.stage for step in config.stages)]
    if any(":" in name and ".py:" not in name for name in builds):
        head += f"# Its modules are looked for beside it, in the current folder and on PYTHONPATH; here they lay in {search_path[0]}.\n"
    return head + pipelines.dump(config)


# ---------------------------------------------------------------- while it runs


def seen(folder: Path, step: str) -> list[tuple[int, float]]:
    """Epoch and metric of what the run has told of ``step`` so far; a line that is being written is passed over."""
    try:
        lines = (folder / PROGRESS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if told["step"] == step:
            found.append((int(told["epoch"]), float(told["value"])))
    return found


# ---------------------------------------------------------------- what came of it


def outcome(job: Job, exit_code: int, objectives: Sequence[Objective], seconds: float) -> dict[str, Any]:
    """The record of an ended run, as JSON: objectives with intervals, verdict, what it cost and reused."""
    record = _record(job, exit_code, seconds)
    try:
        report = _report(job.folder, exit_code)
        record |= costs(job.folder, report) | _results(report, objectives)
    except (DeployCompressError, OSError, ValueError, KeyError) as error:
        record["error"] = str(error) or type(error).__name__
        record["exit_code"] = error.exit_code if isinstance(error, DeployCompressError) else 4
    return record


def refused(job: Job, error: ConfigError) -> dict[str, Any]:
    """The record of a trial whose values do not go together."""
    return _record(job, error.exit_code, 0.0) | {"error": str(error)}


def pruned(job: Job, why: str, seconds: float) -> dict[str, Any]:
    """The record of a trial that was ended as hopeless."""
    return _record(job, 0, seconds) | {"state": "pruned", "verdict": "pruned", "error": why}


def _record(job: Job, exit_code: int, seconds: float) -> dict[str, Any]:
    return {
        "name": job.name,
        "number": None if job.trial is None else job.trial.number,
        "values": {} if job.trial is None else dict(job.trial.values),
        "folder": f"{job.folder.parent.name}/{job.folder.name}",
        "exit_code": exit_code,
        "seconds": round(seconds, 3),
        "made": [],
        "reused": [],
        "saved_seconds": 0.0,
        "objectives": {},
        "state": "failed",
        "verdict": "error",
        "error": "",
    }


def _report(folder: Path, exit_code: int) -> dict[str, Any]:
    """report.json of a run that came to its end. Raises DeployCompressError with why there is none."""
    said = read_json(folder / OUTCOME) if (folder / OUTCOME).is_file() else None
    if said is None:
        how = f"by signal {-exit_code}" if exit_code < 0 else f"with exit code {exit_code}"
        raise StageFailed(f"its process ended {how}; {OUTPUT} and log.txt have what it said")
    if said["error"]:
        error = DeployCompressError(said["error"])
        error.exit_code = said["exit_code"]
        raise error
    report: dict[str, Any] = read_json(folder / "report.json")
    return report


def _results(report: Mapping[str, Any], objectives: Sequence[Objective]) -> dict[str, Any]:
    document = check(report)
    if document.error is not None:
        where = f"{document.error.step}: " if document.error.step else ""
        error = document.error.message.splitlines()[0].removeprefix(where)
        return {"exit_code": document.exit_code, "error": where + error}
    entries = report["artifacts"]
    packed = {a["details"]["of"]: a["bytes"] for a in entries if "of" in a.get("details", {})}
    values = {o.name: value_of(o.name, document.best_id, document, packed) for o in objectives}
    before = {o.name: value_of(o.name, document.baseline, document, packed) for o in objectives}
    missing = [name for name, value in values.items() if value is None]
    best, base = document.artefact(document.best_id), document.artefact(document.baseline)
    gates = [{"metric": g.metric, "bound": g.bound, "verdict": g.verdict} for g in document.gates]
    found = {
        "verdict": document.verdict,
        "exit_code": document.exit_code,
        "objectives": _told(values),
        "best": None if best is None else {"artifact": best.id, "sha256": best.sha256, "bytes": best.bytes},
        "baseline": None if base is None else {"sha256": base.sha256, "objectives": _told(before)},
        "gates": gates,
    }
    if missing:
        return found | {
            "exit_code": 4,
            "error": f"its report has no {', '.join(missing)} of the best artefact",
        }
    return found | {"state": "complete"}


def _told(values: Mapping[str, Value | None]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in values.items() if value is not None}


def costs(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the steps that this run made, and those that a step it reused had cost whoever made it."""
    made: list[str] = []
    reused: list[str] = []
    saved = 0.0
    for stage in report["stages"]:
        if stage["state"] != "done":
            continue
        (reused if stage["reused"] else made).append(stage["name"])
        if stage["reused"]:
            saved += float(read_json(folder / stage["directory"] / MANIFEST)["seconds"])
    return {"made": made, "reused": reused, "saved_seconds": round(saved, 3)}
