"""Which artefact runs in which setting, and what it is compared with there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploycompress.artifact import Artifact
from deploycompress.contracts import Note, RunContext
from deploycompress.registry import RUNTIMES

if TYPE_CHECKING:
    from deploycompress.devices.jobs import Candidate


@dataclass(frozen=True)
class Setting:
    """Where and how everything is run; the target, or the target with one thing changed."""

    device: str
    runtime: str
    provider: str
    threads: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.device}.{self.runtime}.{self.provider}.t{self.threads}.b{self.batch_size}"


def distinct(artifacts: Sequence[Artifact | None]) -> list[Artifact]:
    """Each artefact once, in order; two steps that made the same bytes are two artefacts."""
    found: dict[tuple[str, str], Artifact] = {}
    for artifact in artifacts:
        if artifact is not None:
            found.setdefault((artifact.id, artifact.sha256), artifact)
    return list(found.values())


def candidates_in(
    setting: Setting, artifacts: Sequence[Artifact], at_target: bool, context: RunContext
) -> tuple[list[tuple[Candidate, Artifact]], list[Note]]:
    """What the setting's runtime opens and, at the target, engines in the runtime that built them."""
    from deploycompress.devices.jobs import Candidate
    from deploycompress.graph.execution import fixed_batch_of, network_of
    from deploycompress.graph.feeds import fixed_batch

    found: list[tuple[Candidate, Artifact]] = []
    notes: list[Note] = []
    for number, artifact in enumerate(artifacts):
        own = artifact.details if at_target and "runtime" in artifact.details else {}
        runtime, provider = _runtime_for(artifact, setting, own)
        if runtime is None:
            continue
        fixed = artifact.details.get("batch") or fixed_batch_of(artifact.main_file)
        fixed = fixed or fixed_batch(context.model)
        if fixed not in (None, setting.batch_size):
            reason = f"not measured at batch size {setting.batch_size}: its batch is fixed at {fixed}"
            notes.append(Note("skipped", reason, artifact.id))
            continue
        id = f"{number}-{artifact.id or 'model'}.{setting}"
        threads = own.get("threads", setting.threads)
        options = {**own.get("options", {}), **network_of(artifact.kind, context.model)}
        found.append(
            (
                Candidate(id, artifact.path, runtime, provider, threads, artifact.precision, options),
                artifact,
            )
        )
    return found, notes


def _runtime_for(artifact: Artifact, setting: Setting, own: Mapping[str, Any]) -> tuple[str | None, str]:
    """The runtime that opens the artefact, with its provider; None where there is none.

    ``own``: what it was made for, which counts at the target.
    """
    if artifact.details.get("device", setting.device) != setting.device:  # an engine of another machine
        return None, ""
    if own and artifact.kind in RUNTIMES.load(own["runtime"]).accepts:
        return str(own["runtime"]), str(own.get("provider", "cuda"))
    opens = artifact.kind in RUNTIMES.load(setting.runtime).accepts
    if artifact.kind == "engine":  # of one runtime alone
        opens = artifact.details.get("runtime") == setting.runtime
    return (setting.runtime, setting.provider) if opens else (None, "")


def in_other_runtimes(
    setting: Setting,
    candidates: Sequence[Candidate],
    baselines: Sequence[Artifact | None],
    context: RunContext,
) -> Iterator[tuple[Candidate, Artifact]]:
    """A baseline in each runtime besides the setting's that opens one: what is faster there by compression alone."""
    from deploycompress.devices.jobs import Candidate
    from deploycompress.graph.execution import fixed_batch_of, network_of

    for runtime in dict.fromkeys(c.runtime for c in candidates if c.runtime != setting.runtime):
        baseline = opened_by(runtime, baselines)
        if baseline is not None and fixed_batch_of(baseline.main_file) in (None, setting.batch_size):
            plain = Candidate(f"baseline.{setting}.{runtime}", baseline.path, runtime, setting.provider)
            options = network_of(baseline.kind, context.model)
            yield replace(plain, threads=setting.threads, options=options), baseline


def opened_by(runtime: str, artifacts: Sequence[Artifact | None]) -> Artifact | None:
    kinds = RUNTIMES.load(runtime).accepts
    return next((a for a in artifacts if a is not None and a.kind in kinds), None)
