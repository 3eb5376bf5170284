"""The training loop, on Accelerate."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from deploycompress.contracts import Event, RunContext
from deploycompress.errors import Interrupted, StageFailed
from deploycompress.model.source import seeded
from deploycompress.model.sparse import Masks, keep_zeros, zero_masks
from deploycompress.model.weights import first_nonfinite
from deploycompress.recovery.evaluation import evaluate, primary_of
from deploycompress.recovery.objectives import Objective, Terms
from deploycompress.recovery.recipe import Recipe, learning_rate

History = list[dict[str, float]]


def fit(
    student: nn.Module,
    objective: Objective,
    recipe: Recipe,
    context: RunContext,
    after_epoch: Callable[[int], None] | None = None,
) -> History:
    """Train ``student`` in place by ``recipe``; the figures of every epoch. It is left on the training device.

    The last epoch's network is kept; the zeros of weights that are marked as sparse stay zero. A rehearsal goes forward and backward through one batch and changes no
    weight. ``after_epoch`` is given how many epochs are done, and may change weights in place before the epoch's
    figures are taken. Raises StageFailed when a loss, a gradient or a weight is not finite, Interrupted when the run is
    stopping, ConfigError when the data do not fit.
    """
    with _deterministic(context.seed):
        loop = _Loop.open(student, objective, recipe, context, after_epoch)
        if context.rehearsal:
            loop.rehearse()
        history = [] if context.rehearsal else [loop.epoch(number) for number in range(recipe.epochs)]
    student.eval()
    require_finite(student)
    return history


def device() -> torch.device:
    """Where training happens: what Accelerate finds."""
    found: torch.device = Accelerator().device
    return found


def require_finite(net: nn.Module) -> None:
    """Raises StageFailed naming the first parameter that holds NaN or Inf."""
    if bad := first_nonfinite(net.named_parameters()):
        raise StageFailed(f"after training, {bad}: nothing was saved; use a lower lr, or set clip: 1.0")


@dataclass
class _Loop:
    accelerator: Accelerator
    net: nn.Module
    optimizer: Any
    objective: Objective
    recipe: Recipe
    context: RunContext
    started: float
    zeros: Masks
    after_epoch: Callable[[int], None] | None
    step: int = 0

    @classmethod
    def open(
        cls,
        student: nn.Module,
        objective: Objective,
        recipe: Recipe,
        context: RunContext,
        after_epoch: Callable[[int], None] | None,
    ) -> _Loop:
        accelerator = Accelerator()
        net, optimizer = accelerator.prepare(student, _optimizer(student, recipe))
        zeros = zero_masks(student)
        started = time.monotonic()
        return cls(accelerator, net, optimizer, objective, recipe, context, started, zeros, after_epoch)

    def rehearse(self) -> None:
        batch = next(iter(self.context.data.loader("train", epoch=0)))
        self.net.train()
        terms = self.objective(self.net, batch.to(self.accelerator.device))
        self._backward(terms, "the rehearsal's batch")
        self.optimizer.zero_grad()

    def epoch(self, number: int) -> dict[str, float]:
        """One pass over train, then the validation figures; says how it went."""
        loader = self.context.data.loader("train", epoch=number)
        batches, seen, total = len(loader), 0, 0.0
        steps = batches * self.recipe.epochs
        self.net.train()
        for index, batch in enumerate(loader):
            if self.context.stopping():
                raise Interrupted(signal.SIGTERM)
            rate = learning_rate(self.recipe, self.step, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            terms = self.objective(self.net, batch.to(self.accelerator.device))
            loss = self._backward(terms, f"epoch {number + 1}, batch {index + 1} of {batches}, lr {rate:.3g}")
            self.optimizer.step()
            self.optimizer.zero_grad()
            keep_zeros(self.zeros)
            self.step += 1
            seen, total = seen + batch.size, total + loss * batch.size
        if self.after_epoch is not None:
            self.after_epoch(number + 1)
        return self._report(number, total / seen)

    def _backward(self, terms: Terms, where: str) -> float:
        """Gradients of the summed terms, clipped; the loss. Raises StageFailed naming ``where``."""
        loss = sum(terms.values(), start=torch.zeros((), device=self.accelerator.device))
        self.accelerator.backward(loss)
        limit = math.inf if self.recipe.clip is None else self.recipe.clip
        norm = float(self.accelerator.clip_grad_norm_(self.net.parameters(), limit))
        value = float(loss.detach())
        if math.isfinite(value) and math.isfinite(norm):
            return value
        parts = ", ".join(f"{name} {float(term.detach()):.4g}" for name, term in terms.items())
        what = "gradient" if math.isfinite(value) else "loss"
        raise StageFailed(
            f"{where}: the {what} is not finite ({parts}; gradient norm {norm:.4g}): nothing was saved; use a lower "
            "lr, set clip: 1.0, or look for extreme values in the data"
        )

    def _report(self, number: int, loss: float) -> dict[str, float]:
        context, epochs = self.context, self.recipe.epochs
        figures, _ = evaluate(self.net, context.model, context.data.loader("val"), context.task)
        primary = context.task.primary
        value = primary_of(figures, context.task, "val")
        done = (number + 1) / epochs
        left = (time.monotonic() - self.started) * (1 / done - 1)
        record = {"loss": loss, f"val_{primary.name}": value}
        context.emit(
            Event("progress", f"epoch {number + 1}/{epochs}", record | {"seconds_left": round(left, 1)}, done)
        )
        return {"epoch": number + 1.0} | record


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, not on norms and biases.

    He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", section 3.1.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, recipe.lr)


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """The same numbers for the same seed, thread count and versions; every setting is put back."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # Only warn: an operation without a deterministic form is the user's network's, and no error of ours.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with seeded(seed):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
