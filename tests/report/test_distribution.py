"""What is kept of raw samples: the same figures as the percentiles, and nothing that the samples do not support."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploycompress.measure.intervals import FEWEST_SAMPLES, latency
from deploycompress.report.distribution import SHARES, distribution, fewest
from deploycompress.report.document import Distribution


def written(path: Path, samples: np.ndarray) -> Path:
    path.write_text(json.dumps({"unit": "ns", "blocks": [samples.tolist()]}))
    return path


def test_it_says_what_the_percentiles_of_the_measurement_say(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).lognormal(12, 0.3, 2000).astype(np.int64)
    found = distribution(written(tmp_path / "s.json", samples))
    assert found is not None
    of = dict(zip(found["shares"], found["ms"], strict=True))
    measured = latency([samples.tolist()])
    assert of[0.9] == pytest.approx(measured.p90, rel=1e-4)
    assert of[0.99] == pytest.approx(measured.p99, rel=1e-4)
    assert of[0.5] == pytest.approx(measured.p50, rel=1e-2)
    assert found["ms"] == sorted(found["ms"]) and len(SHARES) == 49
    Distribution.model_validate(found)


def test_what_too_few_samples_do_not_tell_is_null(tmp_path: Path) -> None:
    found = distribution(written(tmp_path / "s.json", np.arange(1, 101) * 1000))
    assert found is not None
    known = [share for share, ms in zip(found["shares"], found["ms"], strict=True) if ms is not None]
    assert (known[0], known[-1]) == (0.075, 0.925)  # 100 samples: 6.62 of them beyond either end
    assert {rank: fewest(rank / 100) for rank in FEWEST_SAMPLES} == FEWEST_SAMPLES
    assert fewest(0.01) == fewest(0.99) and fewest(0.5) < fewest(0.9) < fewest(0.95)


@pytest.mark.parametrize("text", ["", "{}", '{"blocks": []}', '{"blocks": [["a"]]}', '{"blocks": [[]]}'])
def test_a_file_that_has_no_samples_is_no_distribution(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    assert distribution(tmp_path / "s.json") is None
    assert distribution(tmp_path / "missing.json") is None


@pytest.mark.parametrize(
    "wrong", [{"ms": (1.0,)}, {"ms": (2.0, 1.0)}, {"ms": (-1.0, 1.0)}, {"shares": (0.9, 0.1)}, {"shares": (0, 1)}]
)  # fmt: skip
def test_one_that_falls_or_does_not_fit_its_shares_is_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    good = {"shares": (0.1, 0.9), "ms": (1.0, 2.0)}
    assert Distribution.model_validate(good).ms == (1.0, 2.0)
    with pytest.raises(ValueError):
        Distribution.model_validate(good | wrong)
