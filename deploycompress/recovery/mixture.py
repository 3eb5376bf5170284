"""What distillations share: the teacher's and the labels' part of a loss, and how a first batch is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Loss, Outputs, Task
from deploycompress.data.tasks.aspects import aspects_of
from deploycompress.errors import ConfigError, DeployCompressError
from deploycompress.recovery.fitting import of_one_output, parts_of, teaches
from deploycompress.recovery.losses.weighted import reads_features

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
    def teaches(self) -> bool:
        """Whether the teacher counts for anything, now or later."""
        return max(self.first, self.final) > 0

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
        soft = soft_terms(loss, task, student, teacher, batch)
        terms |= {name: alpha.now * term for name, term in soft.items()}
    if alpha.now < 1:
        require_labels(alpha, batch)
        terms["task"] = (1 - alpha.now) * task.loss(student, batch)
    return terms


def soft_terms(loss: Loss, task: Task, student: Outputs, teacher: Outputs, batch: Batch) -> Terms:
    """What the teacher says of the outputs that the task judges, by loss and, of several, by output."""
    aspects = aspects_of(task)
    terms: dict[str, Tensor] = {}
    for name, part in parts_of(loss).items():
        shown = (
            [aspect for aspect in aspects if teaches(part.loss, aspect)] if of_one_output(part.loss) else []
        )
        if reads_features(part.loss):
            terms[name] = part.weight * part.loss(student, teacher, batch)
            continue
        for aspect in shown or aspects[:1]:
            pair = aspect.of(student, "student"), aspect.of(teacher, "teacher")
            weight = part.weight * aspect.weight if shown else part.weight
            called = f"{name}.{aspect.name}" if len(shown) > 1 else name
            term = weight * part.loss(*pair, aspect.targets(batch) if shown else batch)
            terms[called] = terms[called] + term if called in terms else term
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
