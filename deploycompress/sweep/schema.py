"""The shape of sweep.yaml: one frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Budget, Epochs, Level
from deploycompress.config.schema import NAME

Direction = Literal["maximise", "minimise"]
Method = Literal["tpe", "nsga2", "random", "grid"]


class Competitor(StrictModel):
    """An off-the-shelf model, exported and measured as it is; without weights, the base's train steps make them."""

    name: Annotated[str, Field(pattern=NAME)]
    build: str | None = Field(None, description="module:function; the base's own where none is given")
    args: dict[str, Any] = Field({}, description="Keyword arguments of the function")
    weights: Path | None = Field(None, description="As model.weights")


class Pruning(StrictModel):
    """When a trial is hopeless: its primary metric on the validation split, after a short recovery."""

    after: Epochs = Field(description="How many epochs of the step a trial has: 2 epochs")
    step: str | None = Field(None, description="Whose epochs; the last train or distill step")
    min: Level | None = Field(None, description="Below it a trial ends: 90%")
    max: Level | None = Field(None, description="Of a metric that is better the lower: above it a trial ends")

    @model_validator(mode="after")
    def _one_end(self) -> Pruning:
        if self.min is not None and self.max is not None:
            raise ValueError(
                "a metric is too low or too high; expected min or max, or neither for the median"
            )
        return self


class Resources(StrictModel):
    """What one trial takes of a Ray cluster."""

    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    device: Annotated[str, Field(pattern=NAME)] | None = Field(
        None, description="A resource of that name, which the nodes that reach the device declare"
    )


class SweepConfig(StrictModel):
    """sweep.yaml, apart from what ``search`` and ``matrix`` hold, which ``axes`` reads."""

    name: Annotated[str, Field(pattern=NAME)] = Field(description="Of the sweep and of its folder")
    pipeline: Path = Field(description="The base pipeline.yaml")
    set: dict[str, Any] = Field({}, description="Paths and values for every trial, as of --set")
    search: dict[str, Any] = Field(
        {}, description="Paths and what to try there: [75%, 50%], {low: 1, high: 8}"
    )
    matrix: dict[str, Any] = Field({}, description="Paths and lists of values: every combination of them")
    method: Method = "tpe"
    objectives: dict[str, Direction | None] | tuple[str, ...] = ("accuracy", "latency_p50")
    budget: Budget | None = Field(None, description="30 trials, or 20 min")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    pruning: Pruning | None = None
    storage: str | None = Field(None, description="The URL of a database that several machines share")
    resources: Resources = Resources(device=None)
    competitors: tuple[Competitor, ...] = ()
