"""The batches of each optimiser step of an epoch, from any step on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from deploycompress.contracts import Batch, Loader
from deploycompress.errors import ConfigError


def counted(loader: Loader, split: str) -> int:
    """How many batches it has. Raises ConfigError when there is none."""
    batches = len(loader)
    if batches < 1:
        raise ConfigError(
            f"data, split {split}: there is no batch in it; expected at least one: check data.args"
        )
    return batches


def groups(
    loader: Loader, size: int, skip: int, steps: int, reading_ahead: bool = False
) -> Iterator[Sequence[Batch]]:
    """Up to ``size`` batches for each optimiser step, without those of the first ``skip`` steps.

    At most ``steps`` in all: a stream may hold more than it said. A loader with ``starting_at(number)`` does not
    read what is skipped. ``reading_ahead``: while an accelerator computes, the next batch is read, from a loader that is
    ``independent`` of what else happens in the process.
    """
    first = skip * size
    rest = (
        loader.starting_at(first) if hasattr(loader, "starting_at") else itertools.islice(loader, first, None)
    )
    if reading_ahead and getattr(loader, "independent", False):
        rest = ahead(rest)
    for _ in range(skip, steps):
        group = list(itertools.islice(rest, size))
        if not group:
            return
        yield group


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches in the same order; a thread reads the next one while the last one given is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="reading ahead") as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


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
