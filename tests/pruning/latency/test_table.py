"""How operators are put together to be timed, and what is made of their times."""

import pytest

from deploycompress.graph.operators import Operator
from deploycompress.pruning.latency.table import MOST_POINTS, _catalogues, _latency_ms


def points(count):
    return [Operator("", "matmul", (8, 16 + i), 32) for i in range(count)]


def test_a_catalogue_moves_as_much_as_the_model():
    given = points(100)
    together = 20 * max(p.bytes_moved for p in given)
    made = list(_catalogues(given, together))
    moved = [sum(p.bytes_moved for p in catalogue) for catalogue in made]
    assert sorted((p for c in made for p in c), key=repr) == sorted(given, key=repr)
    assert max(moved) <= together and min(moved[:-1]) > 0.9 * together


def test_an_operator_larger_than_that_is_timed_alone():
    assert [len(catalogue) for catalogue in _catalogues(points(3), 1)] == [1, 1, 1]
    assert [len(c) for c in _catalogues(points(MOST_POINTS + 1), 10**9)] == [MOST_POINTS, 1]


def test_times_in_whole_microseconds_are_averaged_without_the_ends():
    warming, calls = [90_000] * 10, [3000] * 18 + [4000] * 11 + [900_000]
    assert _latency_ms(7, {"p7_conv": warming + calls, "p70_conv": warming + calls}) == pytest.approx(
        0.0033125
    )
    assert _latency_ms(7, {"p7_a": warming + calls, "p7_b": warming + [1000] * 30}) == pytest.approx(
        0.0043125
    )
