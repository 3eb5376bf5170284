"""Importance drawn by lot: what every other criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class Random:
    """Uniform numbers in [0, 1), the same for the same ``seed`` and group."""

    comparable: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        import torch

        def drawn(group: ChannelGroup) -> Tensor:
            # A group's own generator: its numbers do not depend on which other groups there are.
            generator = torch.Generator().manual_seed(zlib.crc32(group.id.encode()) ^ self.seed)
            return torch.rand(group.width, generator=generator, dtype=torch.float64)

        return {group.id: drawn(group) for group in groups}
