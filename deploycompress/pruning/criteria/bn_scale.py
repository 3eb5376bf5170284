"""Importance by the scale that batch normalisation gives a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class BnScale:
    """|gamma| of the batch normalisations that the channel goes through, their mean where there are several.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", section 3. Needs no data.
    A group without batch normalisation (the hidden layer of a classifier) is scored by the L2 norm of its
    filters; only its own channels are ranked by it, as scores of different groups are not compared. Raises
    ConfigError for a model in which no group has one: there the criterion would say nothing of what its name says.
    """

    comparable: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        from deploycompress.errors import ConfigError
        from deploycompress.pruning.criteria.magnitude import Magnitude

        scales = {group.id: _scales(model, group) for group in groups}
        without = [group for group in groups if scales[group.id] is None]
        if groups and len(without) == len(groups):
            raise ConfigError(
                f"criterion bn_scale: no batch normalisation with a scale follows any of the {len(groups)} groups "
                f"({', '.join(g.id for g in groups[:3])} ...); use fisher, or magnitude, which needs no data either"
            )
        norms = Magnitude()(model, without, batches, task, call)
        return {id: scale for id, scale in scales.items() if scale is not None} | dict(norms)


def _scales(model: nn.Module, group: ChannelGroup) -> Tensor | None:
    """[width]; None where a channel goes through no batch normalisation."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    total, norms = torch.zeros(2, group.width, dtype=torch.float64)
    for member in group.members:
        part = model.get_submodule(member.layer) if member.dim is None else None
        if isinstance(part, _BatchNorm) and part.weight is not None:
            scale = part.weight.detach().double().abs().cpu()
            total.index_add_(0, member.channels, scale[member.positions])
            norms.index_add_(0, member.channels, torch.ones(len(member.channels), dtype=torch.float64))
    return total / norms if bool((norms > 0).all()) else None
