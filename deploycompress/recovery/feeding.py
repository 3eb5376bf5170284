"""What a process reads for each optimiser step of an epoch, from any step on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deploycompress.contracts import Batch, Loader
from deploycompress.data.loaders import share_of
from deploycompress.errors import ConfigError

Cut = Callable[
    [int], tuple[int, int]
]  # how many samples a batch has -> from which to which are this process's


@dataclass(frozen=True)
class Share:
    """Of a batch of ``size`` samples those that this process trains on; None where it has none of them."""

    batch: Batch | None
    size: int


def counted(loader: Loader, split: str) -> int:
    """How many batches it has. Raises ConfigError when there is none."""
    batches = len(loader)
    if batches < 1:
        raise ConfigError(
            f"data, split {split}: there is no batch in it; expected at least one: check data.args"
        )
    return batches


def groups(
    loader: Loader, size: int, skip: int, steps: int, cut: Cut, reading_ahead: bool = False
) -> Iterator[Sequence[Share]]:
    """This process's share of up to ``size`` batches for each optimiser step, without those of the first ``skip`` steps.

    At most ``steps`` in all: a stream may hold more than it said. A loader with ``shares(first, cut)`` reads neither
    what is skipped nor what is another process's. ``reading_ahead``: while an accelerator computes, the next batch is
    read, from a loader that is ``independent`` of what else happens in the process.
    """
    rest = _shares(loader, skip * size, cut)
    if reading_ahead and getattr(loader, "independent", False):
        rest = ahead(rest)
    for _ in range(skip, steps):
        group = list(itertools.islice(rest, size))
        if not group:
            return
        yield group


def _shares(loader: Loader, first: int, cut: Cut) -> Iterator[Share]:
    if hasattr(loader, "shares"):
        for own, size in loader.shares(first, cut):
            yield Share(own, size)
        return
    for batch in itertools.islice(loader, first, None):
        yield Share(share_of(batch, cut), batch.size)


def ahead(shares: Iterator[Share]) -> Iterator[Share]:
    """The same in the same order; a thread reads the next one while the last one given is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="reading ahead") as reader:
        coming = reader.submit(next, shares, None)
        while (share := coming.result()) is not None:
            coming = reader.submit(next, shares, None)
            yield share


def cut_short(loader: Iterable[Batch], stopping: Callable[[], bool]) -> Iterator[Batch]:
    """The batches, of which the first is given whatever happens, up to the one in which ``stopping`` became true."""
    for batch in loader:
        yield batch
        if stopping():
            return


def until_stopped(loader: Iterable[Batch], leave: Callable[[], None]) -> Iterator[Batch]:
    """The batches; ``leave`` is asked before each, and raises what ends the pass."""
    for batch in loader:
        leave()
        yield batch
