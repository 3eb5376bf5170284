"""Importance by what the loss would change, to second order, if a channel were closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class Fisher:
    """Half the mean over batches of (dL/dm)^2, for a gate m = 1 on each channel where it is read.

    The diagonal of the empirical Fisher matrix stands in for the Hessian: at a minimum, where the first order
    vanishes, this is the rise of the loss (Theis et al., "Faster gaze prediction with dense networks and Fisher
    pruning", equation 8; Liu et al., "Group Fisher Pruning", for coupled layers). In units of the loss, so
    scores of different groups can be compared; small batches tell more than large ones.
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

        each = gate_gradients(model, groups, batches, task, call)
        squares = ({id: gradient.square() for id, gradient in found.items()} for found in each)
        return {id: mean / 2 for id, mean in mean_over_batches(squares).items()}
