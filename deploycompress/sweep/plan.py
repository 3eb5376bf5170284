"""What a sweep is, once its file was checked against the base pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploycompress.artifact import digest_json
from deploycompress.config import reader as pipelines
from deploycompress.config.schema import PipelineConfig
from deploycompress.contracts import MetricInfo
from deploycompress.sweep.axes import Axis, Combination
from deploycompress.sweep.objectives import Objective
from deploycompress.sweep.schema import Pruning, SweepConfig


@dataclass(frozen=True)
class Sweep:
    """A sweep that was checked; ``digest`` is of everything that a trial's result depends on."""

    config: SweepConfig
    base: Path
    base_config: PipelineConfig
    devices: Path | None
    fixed: tuple[str, ...]  # --set texts of every trial
    axes: tuple[Axis, ...]
    objectives: tuple[Objective, ...]
    pruning: Pruning | None  # with its step
    matrix: tuple[Combination, ...]  # of a matrix or grid, in the order that shares most; else empty
    storage_place: str  # where ``storage`` stands, for messages
    digest: str
    primary: MetricInfo

    def pipeline(self, values: Combination, more: Sequence[str] = ()) -> PipelineConfig:
        """The base with these values. Raises ConfigError where they do not go together."""
        texts = [*self.fixed, *(f"{path}={text}" for path, text in values.items()), *more]
        return pipelines.read(self.base, texts, devices=self.devices)


def digest_of(base: PipelineConfig, varied: Sequence[Axis], objectives: Sequence[Objective]) -> str:
    return digest_json(
        {
            "base": base.model_dump(mode="json", exclude={"name"}),
            "axes": [[type(axis).__name__, str(axis)] for axis in varied],
            "objectives": [[o.name, o.direction] for o in objectives],
        }
    )
