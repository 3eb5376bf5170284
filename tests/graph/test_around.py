"""Code before and after an inference: what it must give, and that its time is what is measured."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploycompress.errors import ConfigError
from deploycompress.graph.around import preprocessed, time_around

ONE = SimpleNamespace(inputs={"image": SimpleNamespace(shape=("batch", 1, 8, 8))})
TWO = SimpleNamespace(inputs={**ONE.inputs, "size": SimpleNamespace(shape=("batch", 2))})
IMAGE = np.zeros((1, 1, 8, 8), np.float32)


def of(value: Any) -> Any:
    return lambda path: value


def test_an_array_is_the_only_input(tmp_path: Path) -> None:
    file = tmp_path / "image.txt"
    file.write_text("3")

    def read(path: str) -> np.ndarray:
        return np.full((1, 1, 8, 8), float(Path(path).read_text()))

    assert preprocessed(read, file, ONE)["image"][0, 0, 0, 0] == 3  # type: ignore[arg-type]
    both = preprocessed(of({"image": IMAGE, "size": [[8, 8]]}), file, TWO)  # type: ignore[arg-type]
    assert both["size"].shape == (1, 2)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (ONE, {"images": IMAGE}, r"preprocess gives \['images'\], expected \['image'\]"),
        (TWO, IMAGE, r"preprocess gives no inputs by name, expected \['image', 'size'\]"),
        (ONE, IMAGE[0], r"preprocess gives image of shape \[1, 8, 8\], expected \['batch', 1, 8, 8\]"),
        (ONE, IMAGE[:, :, :4], r"of shape \[1, 1, 4, 8\], expected"),
    ],
)
def test_what_does_not_fit_the_model(model: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocessed(of(given), Path("x"), model)


def test_its_own_failure_is_told() -> None:
    def broken(path: str) -> None:
        raise ValueError("no such camera")

    with pytest.raises(ConfigError, match="preprocess failed: ValueError: no such camera"):
        preprocessed(broken, Path("x"), ONE)  # type: ignore[arg-type]


def test_each_is_timed_by_itself() -> None:
    seen = []

    def after(outputs: dict[str, np.ndarray]) -> None:
        seen.append(sorted(outputs))
        time.sleep(0.004)

    found = time_around(lambda path: time.sleep(0.02), Path("x"), after, {"logits": IMAGE}, threads=1)
    assert 20 <= found["preprocess"].p50 < 40 and 4 <= found["postprocess"].p50 < 15
    assert found["preprocess"].samples >= 20 and set(map(tuple, seen)) == {("logits",)}
    assert set(time_around(None, None, after, {}, threads=1)) == {"postprocess"}
