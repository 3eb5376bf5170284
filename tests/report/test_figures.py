"""Figures as readers see them."""

from __future__ import annotations

import pytest

from deploycompress.report.figures import bare, clean, duration, figure, limit, shortened, signed


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.98333, "share", "98.33 %"),
        (0.01, "points", "1.00 pp"),
        (-0.0033, "points", "−0.33 pp"),
        (-0.0, "points", "0.00 pp"),
        (0.19163, "ms", "0.192 ms"),
        (17.8, "ms", "17.8 ms"),
        (1234.5, "ms", "1,234 ms"),
        (0.0000123, "ms", "1.23e-05 ms"),
        (0.0, "ms", "0.00 ms"),
        (3.999, "x", "4.00×"),
        (0.2093, "ratio", "20.9 %"),
        (81_900, "bytes", "81.9 KB"),
        (999, "bytes", "999 B"),
        (999_600, "bytes", "1 MB"),
        (4500.0, "/s", "4,500 /s"),
        (0.412, "", "0.412"),
        (None, "ms", "–"),
    ],
)
def test_figure(value: float | None, unit: str, text: str) -> None:
    assert figure(value, unit) == text


@pytest.mark.parametrize(
    ("bound", "value", "unit", "text"),
    [
        ("max_drop", 0.01, "points", "drop ≤ 1 pp"),
        ("max_drop", 0.0125, "points", "drop ≤ 1.25 pp"),
        ("max_rise", 0.1, "", "rise ≤ 0.1"),
        ("min_speedup", 3.0, "x", "speed-up ≥ 3×"),
        ("min_speedup", 2.5, "x", "speed-up ≥ 2.5×"),
        ("max_ratio", 0.25, "ratio", "≤ 25 % of the baseline"),
        ("max", 5e7, "bytes", "≤ 50 MB"),
        ("max", 10.0, "ms", "≤ 10 ms"),
        ("min", 0.97, "share", "≥ 97 %"),
        ("min", 4500.0, "/s", "≥ 4,500 /s"),
        ("allow", None, "", "allowed ones only"),
    ],
)
def test_limit_keeps_every_digit_that_counts(bound: str, value: float | None, unit: str, text: str) -> None:
    assert limit(bound, value, unit) == text


def test_changes_carry_their_sign() -> None:
    assert [signed(v, "points") for v in (0.02, -0.02, 0.0)] == ["+2.00 pp", "−2.00 pp", "±0.00 pp"]
    assert bare(signed(-0.02, "points")) == "−2.00"
    assert bare(figure(4.0, "x")) == "4.00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.03, "30 ms"), (0.2, "0.2 s"), (59.94, "59.9 s"), (142.7, "2 min 23 s"), (7320, "2 h 02 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_text() -> None:
    assert clean("a\tb\x07") == "a b�"
    assert shortened("x" * 200, 10) == "x" * 9 + "…"
