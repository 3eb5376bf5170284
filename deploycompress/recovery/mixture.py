"""What distillations share: the teacher's and the labels' part of a loss, and how a first batch is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Loss, Outputs, Task
from deploycompress.errors import ConfigError, DeployCompressError

Terms = Mapping[str, Tensor]  # the summands of the loss, scalars by name


@dataclass
class Share:
    """The teacher's weight ``alpha`` in a loss; it goes from ``first`` to ``final`` in equal steps.

    From the teacher to the labels: Clark et al., "BAM! Born-Again Multi-Task Networks for Natural Language
    Understanding" (ACL 2019), section 3.2, teacher annealing.
    """

    first: float
    final: float

    def __post_init__(self) -> None:
        self.now = self.first

    def progress(self, done: float) -> None:
        self.now = self.first + (self.final - self.first) * done

    @property
    def labels(self) -> bool:
        """Whether labels are needed, now or later."""
        return min(self.first, self.final) < 1


def mixed_terms(
    loss: Loss, task: Task, alpha: Share, student: Outputs, teacher: Outputs, batch: Batch
) -> Terms:
    """What the teacher says and what the labels say; one that weighs nothing is left out."""
    terms: dict[str, Tensor] = {}
    if alpha.now > 0:
        parts = loss.terms(student, teacher, batch) if hasattr(loss, "terms") else None
        soft: Terms = {"loss": loss(student, teacher, batch)} if parts is None else parts
        terms |= {name: alpha.now * term for name, term in soft.items()}
    if alpha.now < 1:
        require_labels(alpha, batch)
        terms["task"] = (1 - alpha.now) * task.loss(student, batch)
    return terms


def require_labels(alpha: Share, batch: Batch) -> None:
    if alpha.labels and batch.targets is None:
        raise ConfigError(
            f"distillation: received no labels; with alpha {min(alpha.first, alpha.final):g}, below 1, it needs them: "
            "set alpha: 1, or yield (inputs, labels)"
        )


def tell(other: object, done: float) -> None:
    if hasattr(other, "progress"):
        other.progress(done)


@contextmanager
def trial(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients: nothing in the network changes."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def tried(whose: str, batch: Batch, forward: Callable[[], object]) -> None:
    """Raises ConfigError where a network cannot read the batch."""
    try:
        forward()
    except DeployCompressError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        received = ", ".join(f"{name} {list(t.shape)}" for name, t in batch.inputs.items())
        raise ConfigError(
            f"distillation: the {whose}'s forward fails on the first batch: {type(error).__name__}: {reason}. Received "
            f"{received}, as model.inputs says: choose a {whose} that reads the same"
        ) from error
