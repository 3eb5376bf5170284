"""The training that every method of a comparison gets alike: steps, order of samples, losses, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from real_data import Samples
from torch import Tensor, nn
from torch.nn import functional as F

from deploycompress.contracts import Batch, Outputs
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.recovery.losses.kd import SoftLabels

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
WARM_UP = 0.05  # of the steps
TEMPERATURE, ALPHA = 4.0, 0.9
REESTIMATED_BATCHES = 20
EVALUATED_AT_ONCE = 250


@dataclass(frozen=True)
class Preparation:
    """From samples as they are stored to what the network reads."""

    normalise: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch_size: int
    learning_rate: float  # at the end of the warm-up; a cosine takes it to zero
    labels: bool = True  # False: the teacher's answer alone


def train(
    student: nn.Module,
    teacher: nn.Module | None,
    samples: Samples,
    preparation: Preparation,
    recipe: Recipe,
    seed: int,
) -> None:
    """Train ``student`` in place: with a teacher its soft labels, without one the labels alone.

    Products are in bfloat16, weights in float32. Same ``seed``: the same samples in the same order with the
    same augmentation, whatever the student. The last step's weights stay; batch statistics are estimated anew.
    """
    student.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        student.parameters(), recipe.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, recipe.steps))
    kd, alpha = SoftLabels(TEMPERATURE), ALPHA if recipe.labels else 1.0
    for inputs, labels in batches(samples, preparation, recipe, seed):
        with torch.autocast("cpu", torch.bfloat16):
            logits = student(inputs)
            with torch.no_grad():
                taught = None if teacher is None else teacher(inputs).float()
        logits = logits.float()
        if taught is None:
            loss = F.cross_entropy(logits, labels)
        else:
            soft = kd(
                Outputs({"logits": logits}), Outputs({"logits": taught}), Batch({}, labels, len(labels))
            )
            loss = alpha * soft + (1 - alpha) * F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    settle_batchnorm(student, samples, preparation, recipe.batch_size, seed)


def batches(
    samples: Samples, preparation: Preparation, recipe: Recipe, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """``recipe.steps`` augmented batches; every sample once before one comes again."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        while len(order) < recipe.batch_size:
            order = torch.cat([order, torch.randperm(len(samples), generator=generator)])
        taken = samples.at(order[: recipe.batch_size])
        order = order[recipe.batch_size :]
        inputs = preparation.augment(preparation.normalise(taken.inputs), generator)
        yield inputs.contiguous(memory_format=torch.channels_last), taken.labels


def settle_batchnorm(
    network: nn.Module, samples: Samples, preparation: Preparation, batch_size: int, seed: int
) -> None:
    """Batch statistics estimated anew on samples without augmentation."""
    count = min(len(samples), REESTIMATED_BATCHES * batch_size)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count]
    given = ({"x": preparation.normalise(samples.inputs[i])} for i in order.split(batch_size))
    reestimate_batchnorm(network, given, lambda module, inputs: module(inputs["x"]))


@torch.no_grad()
def correct(network: nn.Module, samples: Samples, preparation: Preparation) -> np.ndarray:
    """[n] whether each sample is classified right, in float32."""
    network.eval()
    found = []
    for inputs, labels in zip(
        samples.inputs.split(EVALUATED_AT_ONCE), samples.labels.split(EVALUATED_AT_ONCE), strict=True
    ):
        found.append(network(preparation.normalise(inputs)).argmax(1) == labels)
    return torch.cat(found).numpy()


def _share(step: int, steps: int) -> float:
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
