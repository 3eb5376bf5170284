"""How a network is trained: the settings that train and distill share, and the learning rate they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Interval, Quantity
from deploycompress.errors import EnvironmentMissing

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Launch(StrictModel):
    """Several processes that train one network together; each reads and trains on its share of every batch."""

    processes: Annotated[int, Field(ge=1)] = Field(1, description="On each machine, one for each accelerator")
    nodes: Annotated[int, Field(ge=1)] = Field(1, description="Machines that run the same command")
    rendezvous: str | None = Field(
        None, description="host:port of one of the machines, where they meet", pattern=r"^[^:\s]+:[0-9]{1,5}$"
    )

    @property
    def total(self) -> int:
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _meets_somewhere(self) -> Launch:
        if (self.nodes > 1) != (self.rendezvous is not None):
            raise ValueError(
                "nodes and rendezvous go together: {nodes: 2, rendezvous: 10.0.0.1:29400}, or neither of them"
            )
        return self


class Recipe(StrictModel):
    """Optimiser and schedule, and what is done when training is cut short or goes wrong."""

    epochs: Annotated[int, Field(ge=1)] = 10
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: momentum 0.9, Nesterov's form
    lr: Positive | Literal["auto"] = Field(5e-3, description="The highest rate; auto: found by a short probe")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = (
        5e-4  # of weights; not of norms and biases
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the steps in which the rate rises from zero
    schedule: Literal["linear", "cosine"] = "linear"
    clip: Positive | None = None  # of the whole gradient's norm
    accumulate: Annotated[int, Field(ge=1)] = Field(1, description="Batches of one optimiser step")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of an average of the weights, which is then what is validated and kept: 0.999",
    )
    keep: Literal["last", "best"] = Field("last", description="Which epoch's network, by the task's metric")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop after so many epochs without a better validation metric"
    )
    trainable: tuple[str, ...] = Field(
        (), description="Parameters that are trained, by pattern (head.*), or norms; none given: all"
    )
    checkpoint_every: Interval = Field(
        Quantity.parse("5 min", "time"), description="How much work a crash may cost: 5 min, 200 steps"
    )
    on_divergence: Literal["fail", "roll_back"] = Field(
        "fail", description="roll_back: begin the epoch again with half the rate, three times at most"
    )
    on_out_of_memory: Literal["fail", "split"] = Field(
        "fail", description="split: the same batch in smaller parts; batch statistics are then of the parts"
    )
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    track_folder: str = Field(
        "tracking", description="Where the files of TensorBoard and Weights & Biases go"
    )
    launch: Launch | None = Field(None, description="{processes: 2}, or {nodes: 2, rendezvous: host:port}")

    # What a training gives does not depend on these: a run may change them and go on.
    INCIDENTAL: ClassVar[Mapping[str, Any]] = {
        "checkpoint_every": True,
        "track": True,
        "track_folder": True,
        "launch": {"rendezvous"},
    }

    @model_validator(mode="after")
    def _splits_alone(self) -> Recipe:
        if self.on_out_of_memory == "split" and self.launch is not None and self.launch.total > 1:
            raise ValueError(
                "on_out_of_memory: split works in one process only, since the others would not know; use "
                "accumulate and a smaller data.batch_size"
            )
        return self


def require_trackers(recipe: Recipe) -> None:
    """Raises EnvironmentMissing for a tracker that is not installed. Imports none of them."""
    missing = [name for name in recipe.track if find_spec(name) is None]
    if missing:
        raise EnvironmentMissing(
            f"track needs {', '.join(missing)}; install with: pip install 'deploycompress[track]', or leave it out"
        )


def learning_rate(recipe: Recipe, step: int, steps: int, peak: float | None = None) -> float:
    """The rate of optimiser step ``step`` of ``steps`` (from 0): up in the warm-up, then down to zero.

    ``peak``: the highest rate, where ``lr`` is ``auto``. Linear decay: Li, Yumer, Ramanan, "Budgeted Training";
    for pruned networks Zimmer, Spiegel, Pokutta, "How I Learned to Stop Worrying and Love Retraining". Cosine:
    Loshchilov, Hutter, "SGDR", without restarts.
    """
    highest = recipe.lr if peak is None else peak
    assert highest != "auto"
    warm_steps = recipe.warmup * steps
    if step < warm_steps:
        return highest * min(1.0, (step + 1) / warm_steps)
    left = (steps - step) / (steps - warm_steps)
    return highest * (left if recipe.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
