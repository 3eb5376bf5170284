"""The train stage: a network learns the task from its labels."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from deploycompress.artifact import Artifact
from deploycompress.contracts import Inputs, Outcome, RunContext, Stage, Task
from deploycompress.errors import ConfigError
from deploycompress.pruning.shaping import Regularization, SoftPrune, open_shaping
from deploycompress.recovery.recipe import Recipe, require_trackers


class Train(Stage):
    """Trains its source's weights further; they may be fresh ones."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    version = 4
    libraries = ("torch", "accelerate", "numpy")

    incidental = Recipe.INCIDENTAL

    class Config(Recipe):
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = (
            0.0  # share of the target that all classes get alike
        )
        regularization: Regularization | None = None
        mixup: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
            None, description="Alpha of the Beta distribution that samples are mixed by: 0.2"
        )
        soft_prune: SoftPrune | None = None

    def requires(self, context: RunContext) -> None:
        require_trackers(self.config)

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.recovery.evaluation import validated
        from deploycompress.recovery.mixup import MixedUp
        from deploycompress.recovery.objectives import Objective, Supervised
        from deploycompress.recovery.statistics import reestimate
        from deploycompress.recovery.training import fit

        student = checkpoint.load(inputs["source"][0].path, context.model)
        task = _smoothed(context.task, self.config.label_smoothing)
        config = self.config
        shaping = open_shaping(
            student, context.model, config.epochs, config.regularization, config.soft_prune
        )
        objective: Objective = Supervised(context.model, task)
        if config.mixup is not None:
            objective = MixedUp(context.model, task, config.mixup)
        history = fit(student, objective, config, context, shaping.after_epoch, shaping.penalty)
        if config.ema is not None:  # averaged statistics are not those of the averaged weights
            reestimate(student, context, config.trainable)
        figures = validated(student, context)
        folder = workdir / "model"
        checkpoint.save(student.to("cpu"), folder, context.model)
        return Outcome(
            (Artifact.of("", "checkpoint", folder),),
            {f"val_{name}": value for name, value in figures.items()},
            details={"epochs": history},
        )


def _smoothed(task: Task, label_smoothing: float) -> Task:
    """The task with that much label smoothing in its loss. Raises ConfigError when it knows none."""
    if not label_smoothing:
        return task
    if not is_dataclass(task) or "label_smoothing" not in {f.name for f in fields(task)}:
        raise ConfigError(
            f"train.label_smoothing is {label_smoothing}, but the task {type(task).__name__} does not know it: "
            "leave it out"
        )
    changed: Any = task
    smoothed: Task = replace(changed, label_smoothing=label_smoothing)
    return smoothed
