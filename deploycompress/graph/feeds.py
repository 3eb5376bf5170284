"""Real inputs from a split, at the batch sizes that a check or a runtime wants; quantizers have them without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from deploycompress.contracts import Batch, Model, Note
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

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


def shortened_feeds(
    module: nn.Module, model: Model, feed: Mapping[str, Tensor]
) -> tuple[list[dict[str, Tensor]], list[Note]]:
    """``feed`` with each named dimension but the batch cut to half of it; with a note where ``module`` does not run so."""
    import torch

    feeds, notes = [], []
    for dimension in dict.fromkeys(name for spec in model.inputs.values() for name in spec.shape[1:]):
        if not isinstance(dimension, str):
            continue
        shorter = {name: _halved(feed[name], spec.shape, dimension) for name, spec in model.inputs.items()}
        try:
            with torch.no_grad():
                model.call(module, shorter)
        except Exception as error:  # what the user's code raises
            sizes = {name: list(tensor.shape) for name, tensor in shorter.items()}
            reason = f"the model itself does not run on {sizes}: {type(error).__name__}: {error}"
            notes.append(Note("skipped", f"{dimension} was not checked at half of its size: {reason}"))
            continue
        feeds.append(shorter)
    return feeds, notes


def _halved(tensor: Tensor, shape: Sequence[int | str], dimension: str) -> Tensor:
    for axis, name in enumerate(shape):
        if axis and name == dimension:
            tensor = tensor.narrow(axis, 0, (tensor.shape[axis] + 1) // 2)
    return tensor


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
    import torch

    index = torch.tensor([row % count for row in rows])
    return {name: tensor[index] for name, tensor in inputs.items()}
