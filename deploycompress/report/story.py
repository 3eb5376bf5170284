"""What each stage bought: the way from the baseline to the best artefact, told from the manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.artifact import Artifact
from deploycompress.measure.measurement import Measurement


@dataclass(frozen=True)
class Step:
    """One finished step: its manifest, read."""

    id: str
    folder: Path
    manifest: Mapping[str, Any]
    artifacts: tuple[Artifact, ...]
    measurements: tuple[Measurement, ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any], folder: Path) -> Step:
        return cls(
            manifest["id"],
            folder,
            manifest,
            tuple(Artifact.from_json(entry, folder) for entry in manifest["artifacts"]),
            tuple(Measurement.from_json(entry) for entry in manifest["measurements"]),
        )

    @property
    def source(self) -> str | None:
        """The id of the artefact it worked on."""
        given = self.manifest["inputs"].get("source", [])
        return given[0]["id"] if given else None


Chain = list[tuple[Step, str]]  # a step, and which of its artefacts went on


def lineage(steps: Sequence[Step], baseline: str | None, best: str | None) -> Chain:
    """The steps that turned what the baseline was exported from into ``best``, first to last."""
    maker = {a.id: step for step in steps for a in step.artifacts}
    start = maker[baseline].source if baseline in maker else None
    chain: Chain = []
    wanted = best
    while wanted is not None and wanted in maker and wanted not in (baseline, start):
        if any(id == wanted for _, id in chain):
            break
        chain.insert(0, (maker[wanted], wanted))
        wanted = maker[wanted].source
    return chain


def purchases(
    chain: Chain,
    baseline: str | None,
    artifacts: Mapping[str, Artifact],
    rows: Mapping[str, Measurement],
    metric: str,
) -> list[dict[str, Any]]:
    """One row for the baseline, then one for every artefact on the way that was measured.

    Each names the steps since the row before. ``rows``: artefact id -> its measurement at the target.
    """
    if baseline is None or baseline not in rows or baseline not in artifacts:
        return []
    story = [_milestone(["baseline"], artifacts[baseline], rows[baseline], metric)]
    since: list[str] = []
    for step, made in chain:
        since.append(step.id)
        if made in rows:
            story.append(_milestone(since, artifacts[made], rows[made], metric))
            since = []
    return story


def _milestone(steps: Sequence[str], artifact: Artifact, row: Measurement, metric: str) -> dict[str, Any]:
    return {
        "steps": list(steps),
        "artifact": artifact.id,
        "latency_ms": row.latency_ms.p50,
        "metric": row.metrics.get(metric),
        "bytes": artifact.bytes,
    }


def validation(steps: Sequence[Step], chain: Chain, metric: str) -> list[dict[str, Any]]:
    """The metric on the validation split after each step that has it: the last one before, then the chain."""
    name = f"val_{metric}"
    in_chain = {step.id for step, _ in chain}
    first = next((i for i, step in enumerate(steps) if step.id in in_chain), len(steps))
    before = [s for s in steps[:first] if name in s.manifest["metrics"]][-1:]
    told = [*before, *(s for s, _ in chain if name in s.manifest["metrics"])]
    return [{"step": s.id, "value": s.manifest["metrics"][name]} for s in told]


def widths(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Channels of every layer before the first pruning and after the last one."""
    told: dict[str, dict[str, Any]] = {}
    for step in steps:
        for row in step.manifest["details"].get("widths", []):
            before = told.get(row["layer"], row)["before"]
            told[row["layer"]] = {"layer": row["layer"], "before": before, "after": row["after"]}
    return list(told.values())


def of_zeros(sparse: Mapping[str, Mapping[str, float]], runtime: str) -> dict[str, str]:
    """Artefact id -> what its zeros bring; ``sparse``: as the benchmark measured them, beside the same file without."""
    told = {}
    for id, found in sparse.items():
        gain = "no gain" if found["low"] <= 1 else f"{found['value']:.2f}x as fast"
        told[id] = f"{found['zeros']:.0%} of its weights are zero: {gain} on this runtime ({runtime})"
    return told
