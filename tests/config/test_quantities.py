"""Quantities carry their unit; what is written wrong is answered with what was expected."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from deploycompress.config import quantities as q


@pytest.mark.parametrize(
    ("kind", "text", "value", "dimension"),
    [
        (q.Remaining, "50%", 0.5, "percent"),
        (q.Remaining, "2 ms", 2.0, "time"),
        (q.Duration, "10min", 6e5, "time"),
        (q.Duration, "3 µs", 3e-3, "time"),
        (q.RemainingCount, "1.5 M", 1.5e6, "count"),
        (q.RemainingCount, 1000, 1000.0, "number"),
        (q.RemainingBytes, "300 KB", 3e5, "bytes"),
        (q.Size, "2 KiB", 2048.0, "bytes"),
        (q.Ratio, 0.3, 0.3, "number"),
        (q.Ratio, "30%", 0.3, "percent"),
        (q.Points, "1 pp", 0.01, "points"),
        (q.Level, "98.5%", 0.985, "percent"),
        (q.Level, "1e-1", 0.1, "number"),
    ],
)
def test_read(kind: Any, text: Any, value: float, dimension: str) -> None:
    quantity = TypeAdapter(kind).validate_python(text)
    assert quantity.value == pytest.approx(value) and quantity.dimension == dimension
    adapter = TypeAdapter(kind)
    assert adapter.validate_python(adapter.dump_python(quantity, mode="json")) == quantity


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (q.Duration, 5, "the unit is missing; expected a quantity such as 2 ms"),
        (q.Duration, "5 Ms", "unknown unit 'Ms', did you mean 'ms'? Expected a quantity such as 2 ms"),
        (q.Duration, "five ms", "expected a quantity such as 2 ms"),
        (q.Duration, "0 ms", "must be more than 0"),
        (q.Duration, "1e999 ms", "expected a finite quantity such as 2 ms"),
        (q.Duration, True, "expected a quantity such as 2 ms"),
        (q.Duration, None, "expected a quantity such as 2 ms"),
        (q.Remaining, "101%", "must be at most 100%"),
        (q.RemainingCount, "101%", "must be at most 100%"),
        (q.RemainingCount, 0.25, "a plain number is a count here; for a share write 25%"),
        (q.Ratio, 1.5, "must be at most 1"),
        (q.Points, "1%", "unknown unit '%'; expected a quantity such as 1 pp or 0.3"),
    ],
)
def test_refused(kind: Any, text: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        TypeAdapter(kind).validate_python(text)


def test_equal_by_value_and_not_by_spelling() -> None:
    assert q.Quantity.parse("0.5 s", "time") == q.Quantity.parse("500 ms", "time")
    assert q.Quantity.parse("50%", "percent") != q.Quantity.parse("0.5", "number")
