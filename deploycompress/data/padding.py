"""Sequences of different lengths as one batch with its mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def padded(
    sequences: Sequence[np.ndarray], length: int | None = None, value: float = 0
) -> tuple[Tensor, Tensor]:
    """([batch, length, ...], mask [batch, length] int64: 1 where there is a sample, 0 where ``value`` was put).

    ``sequences``: [length of its own, ...] each. ``length``: of all, longer ones are cut at their end; None: the
    longest one's.
    """
    import torch

    first = np.asarray(sequences[0])
    longest = max(1, *(len(s) for s in sequences)) if length is None else length
    batch = np.full((len(sequences), longest, *first.shape[1:]), value, dtype=first.dtype)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        count = min(len(sequence), longest)
        batch[row, :count] = sequence[:count]
        mask[row, :count] = 1
    return torch.from_numpy(batch), torch.from_numpy(mask)
