"""How a network is trained: the settings that train and distill share, and the learning rate they mean."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from deploycompress.config.base import StrictModel


class Recipe(StrictModel):
    """Optimiser and schedule; the learning rate ends at zero, and the last epoch's network is kept."""

    epochs: Annotated[int, Field(ge=1)] = 10
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: momentum 0.9, Nesterov's form
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = (
        5e-4  # of weights; not of norms and biases
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the steps in which the rate rises from zero
    schedule: Literal["linear", "cosine"] = "linear"
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of the whole gradient's norm


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of optimiser step ``step`` of ``steps`` (from 0): up in the warm-up, then down to zero.

    Linear decay: Li, Yumer, Ramanan, "Budgeted Training"; for pruned networks Zimmer, Spiegel, Pokutta, "How I
    Learned to Stop Worrying and Love Retraining". Cosine: Loshchilov, Hutter, "SGDR", without restarts.
    """
    warm_steps = recipe.warmup * steps
    if step < warm_steps:
        return recipe.lr * min(1.0, (step + 1) / warm_steps)
    left = (steps - step) / (steps - warm_steps)
    return recipe.lr * (left if recipe.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
