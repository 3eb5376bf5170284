"""Importance by the curvature of the loss for a gate on the channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class Hessian:
    """Half the diagonal of d2L/dm2, for a gate m = 1 on each channel where it is read; at least 0.

    LeCun et al., "Optimal Brain Damage", equation 5 (s = h u^2 / 2, the rise of the loss at a minimum when u
    becomes 0) with gates for parameters. The diagonal is estimated by Hessian-vector products with random signs
    (Hutchinson's estimator; Yao et al., "PyHessian", section 3), ``draws`` of them a batch, averaged over the
    batches. An estimate below 0 is noise, or tells of a point that is no minimum, and counts as 0. In units of
    the loss; costs ``draws`` + 1 times what ``fisher`` does, for no more than its accuracy as a rule.
    """

    comparable: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    def __init__(self, draws: int = 4) -> None:
        if draws < 1:
            raise ValueError(f"draws is 1 or more, received {draws}")
        self.draws = draws

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        from deploycompress.pruning.gates import gate_curvatures, mean_over_batches

        means = mean_over_batches(gate_curvatures(model, groups, batches, task, call, self.draws))
        return {id: mean.clamp_min(0.0) / 2 for id, mean in means.items()}
