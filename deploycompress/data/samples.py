"""One split with random access, whatever the source gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deploycompress.errors import DeployCompressError

if TYPE_CHECKING:
    from torch import Tensor

Indices = np.ndarray  # int64, positions in a split


class Samples(Protocol):
    """A split whose samples can be read in any order."""

    @property
    def labels(self) -> np.ndarray | None:
        """The class of every sample, [samples] integers; None where there are no classes."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Any:
        """These samples stacked: (inputs, targets), a dict or a Batch. ``rng`` given: augmented with it."""
        ...


def length_of(value: Any) -> int | None:
    """None where it has none, as a DataLoader over an iterable data set, which has the method and raises in it."""
    try:
        return len(value)
    except TypeError:
        return None


@dataclass(frozen=True)
class Images:
    """Images held in memory, transformed a batch at a time.

    ``pixels``: [samples, channels, height, width], uint8 or float32; ``prepare`` makes of a stack of them
    what the network reads; ``augment`` changes the stack before that, in training.
    """

    pixels: np.ndarray
    labels: np.ndarray
    prepare: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor, np.random.Generator], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        import torch

        images = torch.from_numpy(self.pixels[indices]).float()
        if rng is not None and self.augment is not None:
            images = self.augment(images, rng)
        return self.prepare(images), torch.from_numpy(self.labels[indices].astype(np.int64))


@dataclass(frozen=True)
class Subset:
    """Some samples of a split, in the order of ``indices``."""

    whole: Samples
    indices: Indices

    @property
    def labels(self) -> np.ndarray | None:
        labels = getattr(self.whole, "labels", None)  # a user's own class need not have them
        return None if labels is None else labels[self.indices]

    @property
    def classes(self) -> Sequence[str] | None:
        return getattr(self.whole, "classes", None)

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Any:
        return self.whole.batch(self.indices[indices], rng)


class MapStyle:
    """A user's map-style data set (``__len__`` and ``__getitem__``), one sample read after another.

    The classes come from its ``targets`` or ``labels``, as torchvision's data sets have them. What it draws at
    random comes from ``rng``: torch's, numpy's and Python's generators are seeded before a batch is read and
    put back after it, so that a batch is the same in every run and whatever was read before.
    """

    def __init__(self, dataset: Any, collate: Callable[[Sequence[Any]], Any]) -> None:
        self._dataset, self._collate = dataset, collate

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, as torchvision's data sets have them."""
        names = getattr(self._dataset, "classes", None)
        listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        return tuple(names) if names is not None and listed else None

    @property
    def labels(self) -> np.ndarray | None:
        for name in ("targets", "labels"):
            values = getattr(self._dataset, name, None)
            if values is None:
                continue
            array = np.asarray(values)
            if array.shape == (len(self),) and np.issubdtype(array.dtype, np.integer):
                return array
        return None

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Any:
        from deploycompress.model.source import seeded

        seed = 0 if rng is None else int(rng.integers(2**32))
        with seeded(seed):
            return self._collate([self._sample(int(i)) for i in indices])

    def _sample(self, index: int) -> Any:
        with reading_sample(index):
            return self._dataset[index]


class Unreadable(Exception):
    """One sample; its words say which, and why."""


@contextmanager
def reading_sample(index: int) -> Iterator[None]:
    """What reading one raises, with its position in the split: of a million one has to be found."""
    try:
        yield
    except DeployCompressError:
        raise
    except Exception as error:
        raise Unreadable(f"sample {index}: {type(error).__name__}: {error}") from error


def stratified(labels: np.ndarray | None, total: int, count: int, seed: int) -> tuple[Indices, Indices]:
    """Cut ``count`` of ``total`` samples out at random: (cut out, left), both ascending.

    With ``labels`` ([total] integers) every class gives its share, by largest remainders.
    """
    rng = np.random.default_rng(seed)
    if labels is None:
        taken = rng.permutation(total)[:count]
    else:
        _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        exact = sizes * count / total
        quota = np.floor(exact).astype(int)
        for i in np.argsort(quota - exact, kind="stable")[: count - quota.sum()]:
            quota[i] += 1
        of_class = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])  # ascending positions
        taken = np.concatenate(
            [rng.permutation(positions)[:share] for positions, share in zip(of_class, quota, strict=True)]
        )
    chosen = np.zeros(total, dtype=bool)
    chosen[taken] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
