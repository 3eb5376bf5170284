"""Importance by what the loss would change, to first order, if a channel were closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class Taylor:
    """|mean over batches of dL/dm|, for a gate m = 1 on each channel where it is read.

    After Molchanov et al., "Importance Estimation for Neural Network Pruning", with gates. All layers that read
    a channel share its gate, so a coupled group is counted once, and nothing is normalised: scores of different
    groups are in units of the loss. Batch normalisation uses its running statistics; with those of the batch a
    filter's scale would not matter, and the sum would be noise. Labels drawn from the model's own answer, as for
    batches without any, make every gate's expected gradient zero: ``fisher`` and ``hessian`` then tell more.
    """

    comparable: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        from deploycompress.pruning.gates import gate_gradients, mean_over_batches

        means = mean_over_batches(gate_gradients(model, groups, batches, task, call))
        return {id: mean.abs() for id, mean in means.items()}
