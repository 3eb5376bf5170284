"""What a training step minimises: the task's own loss, or a distillation loss with a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from deploycompress.contracts import Batch, Loss, Model, Outputs, Task
from deploycompress.errors import ConfigError, DeployCompressError
from deploycompress.recovery.layers import Pair, trace, watched
from deploycompress.recovery.losses.weighted import reads_features
from deploycompress.recovery.teachers import NetworkTeacher, Teacher

Terms = Mapping[str, Tensor]  # the summands of the loss, scalars by name


class Objective(Protocol):
    """It may have two more: an attribute ``trainable``, a module or None, whose parameters the loop trains with the
    student's; and a method ``progress(done)``, told before each step the share of all steps that is done.
    """

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        """Raises ConfigError when the batch, or what the networks make of it, does not fit."""
        ...


class Supervised:
    """The task's loss on the labels."""

    def __init__(self, model: Model, task: Task) -> None:
        self._model, self._task = model, task

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        outputs = Outputs(self._model.call(student, batch.inputs))
        self._task.check(outputs, batch)
        return {"loss": self._task.loss(outputs, batch)}


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


class Distillation:
    """``alpha * L(student, teacher) + (1 - alpha) * L_task(student, labels)``, on one augmented batch for both.

    With soft labels this is the objective of Hinton et al. (2015), section 2; the same view for both: Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent". With ``alpha`` 1 labels are not needed. A loss
    that reads features needs ``prepare`` before the first call.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        teacher: nn.Module | Teacher,
        loss: Loss,
        alpha: float = 0.9,
        final_alpha: float | None = None,
    ) -> None:
        self._model, self._task, self._loss = model, task, loss
        self._teacher = NetworkTeacher(model, teacher) if isinstance(teacher, nn.Module) else teacher
        self._alpha = Share(alpha, alpha if final_alpha is None else final_alpha)
        self._pairs: Sequence[Pair] = ()
        self.trainable: nn.Module | None = None

    def prepare(self, student: nn.Module, batch: Batch) -> None:
        """Try a first batch before anything is trained; losses that read features choose their layers on it.

        Raises ConfigError when outputs, labels or layers do not fit. Changes no weight and no statistics.
        """
        with _trial(student):
            _tried("teacher", batch, lambda: self._teacher.answer(batch, ()))
            _tried("student", batch, lambda: self._model.call(student, batch.inputs))
            if reads_features(self._loss):
                self._attach(student, batch)
            self(student, batch)
        _require_labels(self._alpha, batch)

    def progress(self, done: float) -> None:
        self._alpha.progress(done)
        _tell(self._loss, done)

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        teacher = self._teacher.answer(batch, [pair.teacher for pair in self._pairs])
        # The hooks go on the network itself, whatever it is wrapped in for several processes.
        own = [pair.student for pair in self._pairs]
        with watched(extract_model_from_parallel(student) if own else student, own) as features:
            tensors = self._model.call(student, batch.inputs)
        outputs = Outputs(tensors, features)
        if batch.targets is not None:
            self._task.check(outputs, batch)
        return _terms(self._loss, self._task, self._alpha, outputs, teacher, batch)

    def _attach(self, student: nn.Module, batch: Batch) -> None:
        """Show the layers of both networks to the loss."""
        loss: Any = self._loss
        own = trace(student, lambda: self._model.call(student, batch.inputs))
        self._pairs = tuple(loss.attach(own, self._teacher.layers(batch)))
        self.trainable = getattr(loss, "trainable", None)
        if self.trainable is not None:
            self.trainable.to(next(iter(batch.inputs.values())).device)


class MutualLearning:
    """Student and teacher are trained together, each by the labels and by what the other answers.

    ``alpha * L(s, t') + (1 - alpha) * L_task(s) + alpha * L(t, s') + (1 - alpha) * L_task(t)``, where a prime takes
    no gradient: Zhang et al., "Deep Mutual Learning" (CVPR 2018), equations 5 and 6, with both updated in one step.
    Raises ConfigError for a loss that reads features: its layers lead from one network to the other only.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        teacher: nn.Module,
        loss: Loss,
        alpha: float = 0.9,
        final_alpha: float | None = None,
    ) -> None:
        if reads_features(loss):
            raise ConfigError(
                "distill.joint: the loss reads features, which lead from the teacher to the student only; choose a loss "
                "on outputs, such as kd"
            )
        self._model, self._task, self._loss, self.trainable = model, task, loss, teacher
        self._alpha = Share(alpha, alpha if final_alpha is None else final_alpha)

    def prepare(self, student: nn.Module, batch: Batch) -> None:
        """As for ``Distillation``."""
        with _trial(student), _trial(self.trainable):
            _tried("teacher", batch, lambda: self._model.call(self.trainable, batch.inputs))
            _tried("student", batch, lambda: self._model.call(student, batch.inputs))
            self(student, batch)
        _require_labels(self._alpha, batch)

    def progress(self, done: float) -> None:
        self._alpha.progress(done)
        _tell(self._loss, done)

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        self.trainable.train(student.training)
        pair = [Outputs(self._model.call(net, batch.inputs)) for net in (student, self.trainable)]
        for outputs in pair:
            self._task.check(outputs, batch)
        s, t = pair
        taught = _terms(self._loss, self._task, self._alpha, t, _detached(s), batch)
        return {
            **_terms(self._loss, self._task, self._alpha, s, _detached(t), batch),
            **{f"teacher_{name}": term for name, term in taught.items()},
        }


class Penalised:
    """Another objective, and terms of the network's weights beside it."""

    def __init__(self, objective: Objective, penalty: Callable[[], Terms]) -> None:
        self._objective, self._penalty = objective, penalty
        self.trainable: nn.Module | None = getattr(objective, "trainable", None)

    def progress(self, done: float) -> None:
        _tell(self._objective, done)

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        return {**self._objective(student, batch), **self._penalty()}


# ---------------------------------------------------------------- parts


def _terms(loss: Loss, task: Task, alpha: Share, student: Outputs, teacher: Outputs, batch: Batch) -> Terms:
    """What the teacher says and what the labels say; one that weighs nothing is left out."""
    terms: dict[str, Tensor] = {}
    if alpha.now > 0:
        parts = loss.terms(student, teacher, batch) if hasattr(loss, "terms") else None
        soft: Terms = {"loss": loss(student, teacher, batch)} if parts is None else parts
        terms |= {name: alpha.now * term for name, term in soft.items()}
    if alpha.now < 1:
        _require_labels(alpha, batch)
        terms["task"] = (1 - alpha.now) * task.loss(student, batch)
    return terms


def _require_labels(alpha: Share, batch: Batch) -> None:
    if alpha.labels and batch.targets is None:
        raise ConfigError(
            f"distillation: received no labels; with alpha {min(alpha.first, alpha.final):g}, below 1, it needs them: "
            "set alpha: 1, or yield (inputs, labels)"
        )


def _tell(other: object, done: float) -> None:
    if hasattr(other, "progress"):
        other.progress(done)


def _detached(outputs: Outputs) -> Outputs:
    return Outputs({name: tensor.detach() for name, tensor in outputs.tensors.items()})


@contextmanager
def _trial(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients: nothing in the network changes."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def _tried(whose: str, batch: Batch, forward: Callable[[], object]) -> None:
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
