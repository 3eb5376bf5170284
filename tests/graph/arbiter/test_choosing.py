"""The Pareto set with its margin."""

from __future__ import annotations

from deploycompress.graph.arbiter.choosing import Contender, choose


def test_what_is_less_accurate_has_to_be_faster_by_three_per_cent() -> None:
    source = Contender("source", 1.0, 0.0, 1.0)
    half = Contender("bf16", 0.5, 0.001, 0.9999)
    barely = Contender("int8", 0.49, 0.004, 0.99)  # 2 % faster than bf16
    fast = Contender("int8 again", 0.3, 0.009, 0.98)
    kept, refused = choose([barely, fast, source, half])
    assert [c.name for c in kept] == ["int8 again", "bf16", "source"]
    assert list(refused) == ["int8"]
    assert "0.49 of the source's latency: not at least 3% faster than bf16 (0.50)" in refused["int8"]


def test_what_is_slower_than_its_source_is_refused_however_small() -> None:
    kept, refused = choose([Contender("source", 1.0, 0.0, 1.0), Contender("int8", 1.3, 0.0, 0.999)])
    assert [c.name for c in kept] == ["source"] and list(refused) == ["int8"]


def test_a_better_metric_is_no_better_than_the_sources() -> None:
    """Else a lucky INT8 model would push everything out that is closer to the source, or be kept although slower."""
    lucky = Contender("lucky", 1.2, -0.01, 0.95)
    close = Contender("close", 0.6, 0.0, 0.9999)
    kept, refused = choose([lucky, close, Contender("source", 1.0, 0.0, 1.0)])
    assert [c.name for c in kept] == ["close", "source"] and list(refused) == ["lucky"]
