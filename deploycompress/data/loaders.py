"""Batches of one split in one fixed order, each checked against the model's inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from deploycompress.contracts import Batch
from deploycompress.data.batches import Specs, batched, check
from deploycompress.data.samples import MapStyle, Samples, Subset, Unreadable, length_of
from deploycompress.errors import ConfigError, DeployCompressError


@dataclass(frozen=True)
class OrderedLoader:
    """Reads ``samples`` by the positions in ``chunks``, one batch each.

    ``seeds``: of the random numbers of training (seed, epoch); a batch's own follow from its number, so that
    it is the same whichever batches were read before it. None: samples as they are in use.
    """

    samples: Samples
    specs: Specs
    where: str
    chunks: Sequence[np.ndarray]
    seeds: tuple[int, int] | None = None

    @property
    def independent(self) -> bool:
        """Whether a thread may read it: a user's own data set may draw from the random numbers of the process."""
        samples = self.samples
        while isinstance(samples, Subset):
            samples = samples.whole
        return type(samples).__module__.startswith("deploycompress.") and not isinstance(samples, MapStyle)

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Batch]:
        for number, indices in enumerate(self.chunks):
            yield self._batch(number, indices)

    def shares(self, first: int, cut: Callable[[int], tuple[int, int]]) -> Iterator[tuple[Batch | None, int]]:
        """From batch number ``first`` on: the samples that ``cut`` says (start, stop) of its size, and that size.

        Nothing else is read, and nothing where they are none (None). What does not begin the batch has random
        numbers of its own.
        """
        for number, indices in enumerate(self.chunks[first:], first):
            start, stop = cut(len(indices))
            yield self._batch(number, indices[start:stop], start) if start < stop else None, len(indices)

    def _batch(self, number: int, indices: np.ndarray, start: int = 0) -> Batch:
        seeds = None if self.seeds is None else [*self.seeds, number, *([start] if start else [])]
        with _reading(f"{self.where}, batch {number}"):
            item = self.samples.batch(indices, None if seeds is None else np.random.default_rng(seeds))
        batch = batched(item, self.specs, self.where)
        check(batch, self.specs, self.where, indices.tolist())
        return batch


@dataclass(frozen=True)
class StreamLoader:
    """Passes on the batches of an iterable, at most ``samples`` samples in batches of at most ``size``.

    What the iterable draws at random by torch's, numpy's or Python's own generators follows from ``seed``, the epoch
    and the number of the batch, so that an epoch is the same in every run and wherever it was cut.
    """

    batches: Iterable[Any]
    specs: Specs
    where: str
    epoch: int | None = None
    samples: int | None = None
    size: int | None = None
    seed: int = 0

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _length(self) -> int:
        known = length_of(self.batches) if self.samples is None else None
        return sum(1 for _ in self) if known is None else known

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(0)

    def shares(self, first: int, cut: Callable[[int], tuple[int, int]]) -> Iterator[tuple[Batch | None, int]]:
        """As ``OrderedLoader.shares``, but everything has to be read."""
        for batch in self._batches(first):
            yield share_of(batch, cut), batch.size

    def _batches(self, first: int) -> Iterator[Batch]:
        """From number ``first`` on; the values of those before are not looked at."""
        if self.epoch is not None and hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(self.epoch)
        seen = 0
        for number, item in enumerate(self._read()):
            batch = batched(item, self.specs, self.where)
            if number >= first:
                check(batch, self.specs, self.where, range(seen, seen + batch.size))
            if self.samples is not None:
                batch = batch.rows(0, min(self.samples - seen, self.size or batch.size))
            seen += batch.size
            if number >= first:
                yield batch
            if self.samples is not None and seen >= self.samples:
                return
        if not seen:
            raise ConfigError(
                f"{self.where} yields no samples: expected at least one; check data.root and data.args"
            )

    def _read(self) -> Iterator[Any]:
        with _reading(self.where), self._drawn(0):
            items = iter(self.batches)
        for number in itertools.count(1):
            with _reading(self.where), self._drawn(number):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _drawn(self, number: int) -> AbstractContextManager[None]:
        from deploycompress.model.source import seeded

        epoch = () if self.epoch is None else (self.epoch,)
        return seeded(int(np.random.SeedSequence([self.seed, *epoch, number]).generate_state(1)[0]))


def share_of(batch: Batch, cut: Callable[[int], tuple[int, int]]) -> Batch | None:
    """The samples of ``batch`` that ``cut`` says (start, stop) of its size; None where they are none."""
    start, stop = cut(batch.size)
    if stop - start == batch.size:
        return batch
    return batch.rows(start, stop) if start < stop else None


def chunks(order: np.ndarray, size: int, together: bool) -> list[np.ndarray]:
    """``order`` cut into batches of ``size``, the rest last.

    ``together``, for training and calibration: a rest of one sample joins the batch before it: batch normalisation has no variance of one.
    """
    cuts = list(range(size, len(order), size))
    if together and cuts and len(order) - cuts[-1] == 1:
        cuts.pop()
    return np.split(order, cuts)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """What a user's data set raises, with the place it was read at."""
    try:
        yield
    except DeployCompressError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, Unreadable) else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: reading failed: {kind}{error}") from error
