"""What tasks on one of the model's outputs share: which output that is, and which metric comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import MetricInfo, Outputs
from deploycompress.data.tasks.aspects import Aspect
from deploycompress.data.tasks.checks import chosen, require_metric

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OutputTask:
    """``metric``: the primary one of ``figures``. ``output``: which of the model's outputs is read; None: the first.

    ``class_axis``: the dimension of that output in which classes exclude each other; None: there are none. ``rank``: the
    number of its dimensions; None: any.
    """

    metric: str
    output: str | None = None

    name: ClassVar[str]
    figures: ClassVar[dict[str, MetricInfo]]
    targets_are_classes: ClassVar[bool] = True
    class_axis: ClassVar[int | None] = None
    rank: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        require_metric(self.name, self.metric, self.figures)

    @property
    def primary(self) -> MetricInfo:
        return self.figures[self.metric]

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        return (Aspect(self.output, self.class_axis, self.rank),)

    def answer(self, outputs: Outputs) -> Tensor:
        """The output that is read. Raises ConfigError when the model has none of that name."""
        return chosen(outputs, self.output, self.name)
