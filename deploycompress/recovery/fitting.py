"""Which losses have something to say of what a task judges; asked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from deploycompress.contracts import Loss, Task
from deploycompress.data.tasks.aspects import Aspect, aspects_of
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.weighted import Weighted, WeightedSum, reads_features

BY_AXIS = {1: "kd", 2: "token_kd"}  # what teaches classes in that dimension


def require_teaching(loss: Loss, task: Task) -> None:
    """Each loss has something to say of what the task judges, and of all that is judged some loss has.

    Raises ConfigError.
    """
    aspects, parts = aspects_of(task), parts_of(loss)
    named = getattr(task, "name", type(task).__name__)
    of_one = {name: part.loss for name, part in parts.items() if of_one_output(part.loss)}
    of_all = any(not of_one_output(part.loss) and not reads_features(part.loss) for part in parts.values())
    for name, each in of_one.items():
        if any(teaches(each, aspect) for aspect in aspects):
            continue
        axes = {aspect.class_axis for aspect in aspects}
        better = next((other for axis, other in BY_AXIS.items() if axis in axes), "mse")
        raise ConfigError(
            f"distill.loss: {name} compares probabilities of classes in dimension {axis_of(each)} of an output, and "
            f"the task {named} has {'none' if axes == {None} else 'them elsewhere'}; use loss: {better}"
        )
    untaught = [a.name or a.output for a in aspects if not any(teaches(each, a) for each in of_one.values())]
    if of_one and untaught and not of_all:
        raise ConfigError(
            f"distill.loss: {', '.join(of_one)} says nothing of {', '.join(map(str, untaught))}, which the task {named} "
            "judges as well; add mse to the list of losses, or use it alone"
        )


def require_no_labels(loss: Loss) -> None:
    """Raises ConfigError for a loss that takes the right class by itself: a blend of two samples has none."""
    for name, part in parts_of(loss).items():
        if getattr(part.loss, "reads_labels", False):
            raise ConfigError(
                f"distill.mixup: the loss {name} reads labels, and a blend of two samples has none; use kd"
            )


def teaches(loss: Loss, aspect: Aspect) -> bool:
    """Whether a loss of a single output has something to say of this one."""
    if aspect.rank is not None and aspect.rank < getattr(loss, "least_rank", 0):
        return False
    return axis_of(loss) is None or aspect.class_axis in ("unknown", axis_of(loss))


def axis_of(loss: Loss) -> int | None:
    """The dimension in which it takes classes; None of one that takes outputs of any kind."""
    found: int | None = getattr(loss, "class_axis", None)
    return found


def parts_of(loss: Loss) -> Mapping[str, Weighted]:
    """The summands by name; a loss by itself is one."""
    return loss.parts if isinstance(loss, WeightedSum) else {"loss": Weighted(loss, 1.0)}


def of_one_output(loss: Loss) -> bool:
    """Whether it is asked for each output that is judged, rather than once with all of them."""
    return hasattr(loss, "class_axis") and not reads_features(loss)
