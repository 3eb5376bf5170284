"""Real inputs at the sizes that are wanted."""

from __future__ import annotations

import pytest
import torch

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError
from deploycompress.graph.feeds import PARITY_BATCHES, parity_feeds, regroup, shortened_feeds, take


def batch(start: int, size: int) -> Batch:
    values = torch.arange(start, start + size, dtype=torch.float32)
    return Batch({"x": values[:, None].repeat(1, 2)}, values.long(), size)


def test_take_starts_again_where_there_are_too_few() -> None:
    assert take([batch(0, 3), batch(3, 3)], 5)["x"][:, 0].tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ConfigError, match="the data have no samples"):
        take([], 1)


def test_parity_is_checked_at_two_sizes_or_at_the_fixed_one(small) -> None:
    dynamic, fixed = small(torch.nn.Identity(), x=("batch", 2)), small(torch.nn.Identity(), x=(4, 2))
    assert [len(f["x"]) for f in parity_feeds(dynamic, [batch(0, 3)])] == list(PARITY_BATCHES)
    assert [len(f["x"]) for f in parity_feeds(fixed, [batch(0, 3)])] == [4]


class Padded(torch.nn.Module):
    """Takes token states and a mask of the same length, which has to be even."""

    def forward(self, states, mask, extra):
        if states.shape[1] % 2:
            raise ValueError("an even length is wanted")
        return (states * mask[..., None]).sum(1) + extra.mean((1, 2))[:, None]


def test_every_named_dimension_is_also_checked_at_half_of_its_size(small) -> None:
    shapes = {"states": ("batch", "length", 4), "mask": ("batch", "length"), "extra": ("batch", "rows", 3)}
    model = small(Padded(), **shapes)

    def feed(length, rows):
        return {
            "states": torch.ones(2, length, 4),
            "mask": torch.ones(2, length),
            "extra": torch.ones(2, rows, 3),
        }

    feeds, notes = shortened_feeds(model.module, model, feed(4, 5))
    assert [{name: list(t.shape) for name, t in found.items()} for found in feeds] == [
        {"states": [2, 2, 4], "mask": [2, 2], "extra": [2, 5, 3]},
        {"states": [2, 4, 4], "mask": [2, 4], "extra": [2, 3, 3]},
    ]
    assert notes == []
    feeds, notes = shortened_feeds(model.module, model, feed(6, 2))
    assert [list(found["extra"].shape) for found in feeds] == [[2, 1, 3]]
    assert [(note.kind, note.message) for note in notes] == [
        (
            "skipped",
            "length was not checked at half of its size: the model itself does not run on {'states': [2, 3, 4], "
            "'mask': [2, 3], 'extra': [2, 2, 3]}: ValueError: an even length is wanted",
        )
    ]


def test_regroup_loses_and_doubles_no_sample() -> None:
    pieces = list(regroup([batch(0, 5), batch(5, 2)], 3))
    assert [len(inputs["x"]) for _, inputs in pieces] == [3, 3, 3]
    assert [t for real, _ in pieces for t in real.targets.tolist()] == list(range(7))
    assert [real.size for real, _ in pieces] == [3, 2, 2]
    for real, inputs in pieces:
        torch.testing.assert_close(inputs["x"][: real.size], real.inputs["x"])
    targets = {"a": torch.arange(5), "b": [{"n": i} for i in range(5)]}
    cut = [real.targets for real, _ in regroup([Batch(batch(0, 5).inputs, targets, 5)], 3)]
    assert [t["a"].tolist() for t in cut] == [[0, 1, 2], [3, 4]] and cut[1]["b"] == [{"n": 3}, {"n": 4}]
    untouched = batch(0, 5)
    assert next(regroup([untouched], None))[0] is untouched


def test_targets_by_head_and_lists_of_boxes_are_cut_with_their_samples() -> None:
    whole = batch(0, 5)
    heads = Batch(whole.inputs, {"kind": whole.targets, "boxes": [{"boxes": i} for i in range(5)]}, 5)
    last = list(regroup([heads], 3))[1][0]
    assert last.size == 2 and last.targets["kind"].tolist() == [3, 4]
    assert last.targets["boxes"] == [{"boxes": 3}, {"boxes": 4}]
