"""Importance by the size of the weights that make a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class Magnitude:
    """The L1 or L2 norm of a channel's filter, averaged over the layers that make the channel together.

    Li et al., "Pruning Filters for Efficient ConvNets" (L1). Needs no data; layers have scales of their own,
    so scores of different groups cannot be compared.
    """

    comparable: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False

    def __init__(self, norm: Literal["l1", "l2"] = "l2") -> None:
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm is l1 or l2, received {norm!r}")
        self.norm = norm

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        return {group.id: self._of(model, group) for group in groups}

    def _of(self, model: nn.Module, group: ChannelGroup) -> Tensor:
        from deploycompress.pruning.slices import by_channel, producers, weight_name

        total, layers = None, 0
        for member in producers(model, group):
            weight = model.get_parameter(weight_name(model, member)).detach().double()
            powers = weight.abs() if self.norm == "l1" else weight.square()
            part = by_channel(model, group, member, powers)
            part = part if self.norm == "l1" else part.sqrt()
            total = part if total is None else total + part
            layers += 1
        assert total is not None, f"{group.id} has no layer that makes its channels"
        return total / layers
