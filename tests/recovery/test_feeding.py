"""Batches for each step: read ahead by a thread, or only as far as a signal lets them be."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest
import torch

from deploycompress.contracts import Batch
from deploycompress.recovery.feeding import Share, ahead, cut_short, groups


def numbered(count: int) -> list[Batch]:
    return [Batch({"x": torch.tensor([float(n)])}, None, 1) for n in range(count)]


def shares(count: int) -> list[Share]:
    return [Share(batch, batch.size) for batch in numbered(count)]


def everything(size: int) -> tuple[int, int]:
    return 0, size


def values(batches: Iterable[Batch | Share]) -> list[float]:
    own = [batch.batch if isinstance(batch, Share) else batch for batch in batches]
    return [float(batch.inputs["x"]) for batch in own]


def test_the_next_batch_is_read_while_one_is_in_use():
    began = [threading.Event() for _ in range(4)]

    def reading() -> Iterator[Share]:
        for share, event in zip(shares(4), began, strict=True):
            event.set()
            yield share

    found = []
    for number, share in enumerate(ahead(reading())):
        found.append(share)
        assert number == 3 or began[number + 1].wait(10), "nothing asks for it until this one is done with"
    assert values(found) == [0.0, 1.0, 2.0, 3.0]


def test_what_reading_raises_comes_where_its_batch_would_have():
    def failing() -> Iterator[Share]:
        yield from shares(2)
        raise ValueError("the third one is damaged")

    read = ahead(failing())
    assert values([next(read), next(read)]) == [0.0, 1.0]
    with pytest.raises(ValueError, match="the third one is damaged"):
        next(read)
    left = ahead(iter(shares(9)))
    next(left)
    left.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("reading ahead")]


@pytest.mark.parametrize("reading_ahead", [False, True])
def test_steps_get_the_same_batches_either_way(reading_ahead: bool):
    class Independent(list):
        independent = True

    found = list(groups(Independent(numbered(7)), 2, 1, 4, everything, reading_ahead))
    assert [values(group) for group in found] == [[2.0, 3.0], [4.0, 5.0], [6.0]]


def test_of_a_batch_that_somebody_else_reads_a_process_takes_its_share():
    batches = [Batch({"x": torch.arange(size)}, torch.arange(size), size) for size in (4, 1)]
    for rank, expected in enumerate([[[0, 1], [0]], [[2, 3], None]]):
        cut = [(0, 2), (0, 1)] if rank == 0 else [(2, 4), (1, 1)]
        (group,) = groups(batches, 2, 0, 1, dict(zip((4, 1), cut, strict=True)).__getitem__)
        assert [share.size for share in group] == [4, 1]
        assert [share.batch and share.batch.targets.tolist() for share in group] == expected


def test_a_pass_that_is_to_end_gives_one_batch_at_least():
    assert values(cut_short(numbered(3), lambda: False)) == [0.0, 1.0, 2.0]
    assert values(cut_short(numbered(3), lambda: True)) == [0.0]
