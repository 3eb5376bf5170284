"""The batches of each optimiser step of an epoch, from any step on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

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


def groups(loader: Loader, size: int, skip: int, steps: int) -> Iterator[Sequence[Batch]]:
    """Up to ``size`` batches for each optimiser step, without those of the first ``skip`` steps.

    At most ``steps`` in all: a stream may hold more than it said. A loader with ``starting_at(number)`` does not
    read what is skipped.
    """
    first = skip * size
    rest = (
        loader.starting_at(first) if hasattr(loader, "starting_at") else itertools.islice(loader, first, None)
    )
    for _ in range(skip, steps):
        group = list(itertools.islice(rest, size))
        if not group:
            return
        yield group


def until_stopped(loader: Iterable[Batch], leave: Callable[[], None]) -> Iterator[Batch]:
    """The batches; ``leave`` is asked before each, and raises what ends the pass."""
    for batch in loader:
        leave()
        yield batch
