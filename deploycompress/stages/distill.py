"""The distill stage: a compressed network learns from the one it was made of."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from deploycompress.artifact import Artifact
from deploycompress.contracts import Inputs, Loss, Outcome, Ref, RunContext, Stage
from deploycompress.errors import ConfigError
from deploycompress.pruning.shaping import Regularization, SoftPrune, open_shaping
from deploycompress.recovery.recipe import Recipe, require_trackers
from deploycompress.registry import LOSSES

if TYPE_CHECKING:
    from torch import nn

STATISTICS_BATCHES = 200  # enough for means and variances of every channel


class Distill(Stage):
    """Student: the source. Teacher: the network before it was compressed, or another step's."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    libraries = ("torch", "accelerate", "numpy")
    compresses = False
    incidental = Recipe.INCIDENTAL

    class Config(Recipe):
        loss: str = "kd"
        temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.9  # weight of the teacher; 1: labels are not needed
        teacher: str = "original"  # or the id of a step
        regularization: Regularization | None = None
        soft_prune: SoftPrune | None = None

    def inputs(self) -> Mapping[str, Ref]:
        return {"source": "last", "teacher": self.config.teacher}

    def requires(self, context: RunContext) -> None:
        require_trackers(self.config)

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.recovery.objectives import Distillation, Objective
        from deploycompress.recovery.training import device, fit

        config = self.config
        student = checkpoint.load(inputs["source"][0].path, context.model)
        shaping = open_shaping(
            student, context.model, config.epochs, config.regularization, config.soft_prune
        )
        student.to(device())
        teacher = checkpoint.load(inputs["teacher"][0].path, context.model).to(device())
        before = _validated(student, context)
        _reestimate(student, context)
        reestimated = _validated(student, context)
        objective: Objective = Distillation(context.model, context.task, teacher, self._loss())
        history = fit(student, objective, config, context, shaping.after_epoch, shaping.penalty)
        _reestimate(student, context)
        after = _validated(student, context)
        folder = workdir / "model"
        checkpoint.save(student.to("cpu"), folder, context.model)
        return Outcome(
            (Artifact.of("", "checkpoint", folder),),
            {f"val_{name}": value for name, value in after.items()}
            | {f"val_{name}_before": value for name, value in before.items()}
            | _sparsity(student),
            details={"epochs": history, "val_reestimated": reestimated},
        )

    def _loss(self) -> Loss:
        """The loss by name; it is given those of temperature and alpha that it takes."""
        make = LOSSES.load(self.config.loss)
        offered = {"temperature": self.config.temperature, "alpha": self.config.alpha}
        taken = inspect.signature(make).parameters
        try:
            loss: Loss = make(**{name: value for name, value in offered.items() if name in taken})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"distill.loss {self.config.loss} could not be made: {error}") from error
        return loss


def _validated(student: nn.Module, context: RunContext) -> dict[str, float]:
    from deploycompress.recovery.evaluation import evaluate

    return evaluate(student, context.model, context.data.loader("val"), context.task)[0]


def _sparsity(student: nn.Module) -> dict[str, float]:
    """Of the weights that were made sparse before: training has kept their zeros."""
    from deploycompress.model.sparse import share_of_zeros, sparse_weights

    names = sparse_weights(student)
    return {"sparsity": share_of_zeros(map(student.get_parameter, names))} if names else {}


def _reestimate(student: nn.Module, context: RunContext) -> None:
    """Batch statistics of the compressed network, on training samples as they are in use.

    Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning".
    """
    from deploycompress.model.batchnorm import reestimate_batchnorm
    from deploycompress.recovery.training import device

    batches = itertools.islice(context.data.loader("train"), STATISTICS_BATCHES)
    reestimate_batchnorm(student, (batch.to(device()).inputs for batch in batches), context.model.call)
