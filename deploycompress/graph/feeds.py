"""Real inputs from a split, at the batch sizes that a check or a runtime wants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from deploycompress.contracts import Batch, Model
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

PARITY_BATCHES = (1, 16)  # neither is the one that a graph is traced with


def take(loader: Iterable[Batch], size: int) -> dict[str, Tensor]:
    """``size`` samples of the first batch, from the start again where it has fewer. Raises ConfigError if empty."""
    batch = next(iter(loader), None)
    if batch is None or _samples(batch) == 0:
        raise ConfigError("the data have no samples to check with; look at data.source and its splits")
    return _rows(batch.inputs, range(size), _samples(batch))


def parity_feeds(model: Model, loader: Iterable[Batch]) -> list[dict[str, Tensor]]:
    """Feeds to compare with: two batch sizes, or the one that the model fixes."""
    fixed = fixed_batch(model)
    return [take(loader, size) for size in ((fixed,) if fixed else PARITY_BATCHES)]


def fixed_batch(model: Model) -> int | None:
    """The batch size that the model's inputs declare; None where it is a name."""
    size = next(iter(model.inputs.values())).shape[0]
    return size if isinstance(size, int) else None


def regroup(loader: Iterable[Batch], size: int | None) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Each batch with inputs for it; with a ``size``, in pieces of exactly that many rows.

    Where a batch leaves a rest, rows are repeated in the inputs; the Batch has only the real ones.
    """
    for batch in loader:
        count = _samples(batch)
        if size is None or size == count:
            yield batch, dict(batch.inputs)
            continue
        for start in range(0, count, size):
            yield batch.rows(start, start + size), _rows(batch.inputs, range(start, start + size), count)


def _samples(batch: Batch) -> int:
    return int(next(iter(batch.inputs.values())).shape[0])


def _rows(inputs: Mapping[str, Tensor], rows: Iterable[int], count: int) -> dict[str, Tensor]:
    index = torch.tensor([row % count for row in rows])
    return {name: tensor[index] for name, tensor in inputs.items()}
