"""How operators are put together to be timed, and what is made of their times."""

import pytest

from deploycompress.config.schema import TargetConfig
from deploycompress.devices.profiles import NotProfiled
from deploycompress.devices.results import OperatorProfile
from deploycompress.graph.operators import Operator
from deploycompress.pruning.latency.bench import Place
from deploycompress.pruning.latency.table import MOST_POINTS, _catalogues, _latency_ms, _measure_catalogue


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

    def taken(**ns: list[int]) -> dict[str, OperatorProfile]:
        return {name: OperatorProfile("Conv", "CPU", "fp32", "", tuple(of)) for name, of in ns.items()}

    one = taken(p7_conv=warming + calls, p70_conv=warming + calls)
    assert _latency_ms(7, one) == pytest.approx(0.0033125)
    two = taken(p7_a=warming + calls, p7_b=warming + [1000] * 30)
    assert _latency_ms(7, two) == pytest.approx(0.0043125)


def test_a_runtime_that_calls_operators_otherwise_has_no_table(tmp_path, monkeypatch):
    """Rather than a table of zeros."""
    monkeypatch.setattr(
        "deploycompress.pruning.latency.table.profile",
        lambda *_, **__: {"fused_12": OperatorProfile("Conv", "CPU", "fp32", "", (1000,) * 30)},
    )
    place = Place.of(TargetConfig())
    with pytest.raises(
        NotProfiled, match="onnxruntime gives 1 of 1 operators other names than the file does"
    ):
        _measure_catalogue([Operator("", "matmul", (8, 8), 8)], place, tmp_path)
