"""What the digest of a data set reads, and when it is remembered."""

from __future__ import annotations

import os

import numpy as np
import torch

from deploycompress.data import contents
from deploycompress.data.padding import padded
from deploycompress.engine.store import FileStore

OLD = 1_600_000_000


def files(folder, **texts):
    for name, text in texts.items():
        (folder / name).write_text(text)
        os.utime(folder / name, (OLD, OLD))
    return sorted(folder.iterdir())


def test_names_below_the_root_sizes_and_every_byte(tmp_path):
    found = contents.digests_of(files(tmp_path, b="two", a="one1"), tmp_path)
    assert [entry[:2] for entry in found] == [["a", 4], ["b", 3]]
    assert contents.digests_of(files(tmp_path, b="twO"), tmp_path) != found
    assert contents.digests_of([tmp_path / "a"], tmp_path / "a")[0][0] == "a"


def test_large_data_are_read_once_until_a_file_changes(tmp_path, monkeypatch):
    read = []
    digest = contents.digest_file
    monkeypatch.setattr(contents, "digest_file", lambda path: read.append(path.name) or digest(path))
    monkeypatch.setattr(contents, "READERS", 1)
    monkeypatch.setattr(contents, "REMEMBERED_BYTES", 3)
    store = FileStore(tmp_path / "store")
    folder = tmp_path / "data"
    folder.mkdir()
    first = contents.digests_of(files(folder, a="one", b="two"), folder, store)
    assert contents.digests_of(files(folder), folder, store) == first and read == ["a", "b"]
    (folder / "b").write_text("TWO")
    os.utime(folder / "b", (OLD + 1, OLD + 1))
    assert contents.digests_of(files(folder), folder, store) != first and read == ["a", "b"] * 2
    future = 4_000_000_000  # by a clock that is wrong
    for name in "ab":
        os.utime(folder / name, (future, future))
    with monkeypatch.context() as later:
        later.setattr(contents.time, "time", lambda: (folder / "a").stat().st_ctime + 60)
        for _ in range(2):
            contents.digests_of(sorted(folder.iterdir()), folder, store)
    assert read == ["a", "b"] * 3
    files(folder, a="one")
    os.utime(folder / "b")  # changed just now: the same time stamp may come again
    for _ in range(2):
        contents.digests_of(files(folder), folder, store)
    assert read == ["a", "b"] * 5


def test_a_long_reading_says_how_far_it_is(tmp_path, monkeypatch):
    told = []
    contents.digests_of(files(tmp_path, a="one", b="two", c="three"), tmp_path, emit=told.append)
    assert not told  # it took no time
    monkeypatch.setattr(contents, "SILENT_S", 0.0)
    monkeypatch.setattr(contents, "TELL_S", 0.0)
    contents.digests_of(files(tmp_path), tmp_path, emit=told.append)
    assert len(told) == 2  # after a and b; c is the end
    assert told[0].message == "all of the data is read once, 0.0 of 0.0 GB"
    left = [event.figures["seconds_left"] for event in told]
    assert told[0].kind == "progress" and min(left) > 0


def test_sequences_are_padded_with_their_mask():
    batch, mask = padded([np.array([[1.0, 2.0]]), np.ones((3, 2))], value=-1)
    assert batch.tolist() == [[[1, 2], [-1, -1], [-1, -1]], [[1, 1]] * 3] and mask.tolist() == [
        [1, 0, 0],
        [1, 1, 1],
    ]
    batch, mask = padded([np.arange(5), np.arange(0)], length=4)
    assert batch.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]] and mask.dtype == torch.int64
    assert padded([np.arange(0)])[1].tolist() == [[0]]
