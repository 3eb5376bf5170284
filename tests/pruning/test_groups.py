"""The grid of widths, and which channels stay at each."""

import pytest
import torch

from deploycompress.pruning.groups import ChannelGroup, Heads, choose, on_grid


def group(width, segments=1, id="g"):
    return ChannelGroup(id, width, (), torch.arange(width) * segments // width)


@pytest.mark.parametrize(
    ("width", "segments", "align", "original", "grid"),
    [
        (32, 1, 8, None, (8, 16, 24, 32)),
        (20, 1, 8, None, (8, 16, 20)),
        (6, 1, 8, None, (6,)),
        (8, 1, 8, None, (8,)),
        (128, 1, 8, None, tuple(range(16, 129, 8))),  # an eighth stays
        (64, 1, 8, 256, (32, 40, 48, 56, 64)),  # an eighth of what it was at first
        (64, 16, 8, None, (16, 32, 48, 64)),
        (96, 3, 8, None, (24, 48, 72, 96)),
        (10, 1, 1, None, tuple(range(2, 11))),
    ],
)
def test_the_grid_is_aligned_and_divides_into_segments(width, segments, align, original, grid):
    widths = None if original is None else {"g": original}
    assert on_grid([group(width, segments)], align, widths)[0].grid == grid


def test_the_best_of_every_segment_stay():
    scores = torch.tensor([1.0, 2, 3, 4, 50, 60, 70, 80])
    assert group(8).keep(scores, 4).tolist() == [4, 5, 6, 7]
    assert group(8, 2).keep(scores, 4).tolist() == [2, 3, 6, 7]


def test_of_equal_scores_the_first_stays_and_widths_are_nested():
    scores = torch.tensor([1.0, 1, 1, 2, 2, 0, 0, 0])
    kept = [group(8).keep(scores, w).tolist() for w in (2, 3, 6)]
    assert kept == [[3, 4], [0, 3, 4], [0, 1, 2, 3, 4, 5]]


def test_whole_groups_are_not_named():
    a, b = group(4, id="a"), group(4, id="b")
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0)}
    kept = choose([a, b], scores, {"a": 4, "b": 1})
    assert {id: channels.tolist() for id, channels in kept.items()} == {"b": [3]}


def of_heads(units):
    units = torch.tensor(units)
    width = len(units)
    segments = torch.zeros(width, dtype=torch.int64)
    return ChannelGroup("h", width, (), segments, (), Heads(("",), units))


@pytest.mark.parametrize(("align", "grid"), [(1, (3, 6, 9)), (8, (3, 6, 9))])
def test_heads_stay_whole_whatever_the_alignment(align, grid):
    assert on_grid([of_heads([0, 0, 0, 1, 1, 1, 2, 2, 2])], align)[0].grid == grid


def test_an_eighth_of_many_heads_stays_and_at_least_one():
    many = of_heads([i // 2 for i in range(48)])
    assert on_grid([many], 1)[0].grid[0] == 6
    assert on_grid([of_heads([0, 0, 1, 1])], 1)[0].grid == (2, 4)


def test_the_heads_with_the_largest_sums_stay():
    scores = torch.tensor([9.0, 0, 4, 4, 6, 6])
    assert of_heads([0, 0, 1, 1, 2, 2]).keep(scores, 4).tolist() == [0, 1, 4, 5]
    assert of_heads([0, 1, 2, 0, 1, 2]).keep(scores, 2).tolist() == [0, 3]
