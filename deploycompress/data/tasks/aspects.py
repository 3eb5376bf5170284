"""What of a network's answer a task judges, as losses between two networks are shown it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from deploycompress.contracts import Batch, Outputs, Task
from deploycompress.errors import ConfigError


@dataclass(frozen=True)
class Aspect:
    """One judged output. ``class_axis``: its dimension of exclusive classes; None: it has none. ``rank``: its dimensions.

    ``output``: its name; None: the first. ``targets``: of a batch, those of this output. ``weight``: what it counts
    beside the others of a task.
    """

    output: str | None = None
    class_axis: int | Literal["unknown"] | None = "unknown"
    rank: int | None = None
    name: str = ""
    weight: float = 1.0
    targets: Callable[[Batch], Batch] = lambda batch: batch

    def of(self, outputs: Outputs, whose: str) -> Outputs:
        """The same outputs, with this one first; one alone is meant. Raises ConfigError where there is none of its name."""
        if (
            self.output is None
            or self.output == next(iter(outputs.tensors), None)
            or len(outputs.tensors) == 1
        ):
            return outputs
        if self.output not in outputs.tensors:
            raise ConfigError(
                f"distillation: the task reads the output {self.output!r}, and the {whose} has "
                f"{', '.join(outputs.tensors)}: expected it of both"
            )
        return replace(outputs, tensors={self.output: outputs.tensors[self.output], **outputs.tensors})


def aspects_of(task: Task) -> tuple[Aspect, ...]:
    """At least one; of a task that does not tell, its first output."""
    told: tuple[Aspect, ...] = getattr(task, "aspects", (Aspect(),))
    return told
