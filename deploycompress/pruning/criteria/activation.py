"""Importance by how large a channel is where it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup, Member
    from deploycompress.pruning.layers import Axis


class Activation:
    """The mean absolute activation of the channel in the inputs of all layers that read it.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", section 2.2
    ("activation"); after a ReLU this is its mean, and 0 for a channel that is always off (Hu et al., "Network
    Trimming"). Where nothing linear reads the channel, the outputs of the layers that make it stand in. Needs
    data and no labels; scores of different groups cannot be compared. Raises StageFailed without a batch.
    """

    comparable: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        from deploycompress.errors import StageFailed
        from deploycompress.pruning.slices import consumers, producers

        places = {g.id: list(consumers(model, g)) or list(producers(model, g)) for g in groups}
        means = _means(model, {(m.layer, m.axis) for found in places.values() for m in found}, batches, call)
        scores = {}
        for group in groups:
            called = [member for member in places[group.id] if (member.layer, member.axis) in means]
            if not called:
                raise StageFailed(
                    f"criterion activation: no layer that makes or reads {group.id} is called; are there data? "
                    "Else use fisher, or exclude it"
                )
            scores[group.id] = _of_channels(group, called, means)
        return scores


def _means(
    model: nn.Module,
    places: set[tuple[str, Axis]],
    batches: Iterable[Batch],
    call: Callable[..., Any],
) -> dict[tuple[str, Axis], Tensor]:
    """(layer, axis) -> the mean absolute value at each position of what the layer reads or gives."""
    import torch

    from deploycompress.pruning.activations import channels_last, watching

    sums: dict[tuple[str, Axis], Tensor] = {}
    counts: dict[tuple[str, Axis], int] = {}

    def watch(name: str, given: Tensor, output: Tensor) -> None:
        both: dict[tuple[str, Axis], Tensor] = {(name, "in"): given, (name, "out"): output}
        for place, tensor in both.items():
            if place in places:
                rows = channels_last(model.get_submodule(name), tensor).abs()
                sums[place] = sums.get(place, 0.0) + rows.sum(0, dtype=torch.float64).cpu()
                counts[place] = counts.get(place, 0) + len(rows)

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    with torch.no_grad(), watching(model, {layer for layer, _ in places}, watch):
        for batch in batches:
            call(model, batch.to(device).inputs)
    return {place: total / counts[place] for place, total in sums.items()}


def _of_channels(
    group: ChannelGroup, members: Sequence[Member], means: Mapping[tuple[str, Axis], Tensor]
) -> Tensor:
    """[width] the mean over all places where a channel lies."""
    import torch

    total, times = torch.zeros(2, group.width, dtype=torch.float64)
    for member in members:
        total.index_add_(0, member.channels, means[member.layer, member.axis][member.positions])
        times.index_add_(0, member.channels, torch.ones(len(member.channels), dtype=torch.float64))
    mean: Tensor = total / times.clamp_min(1.0)
    return mean
