"""A device's answer is read like any untrusted input."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from deploycompress.devices.results import Failed, Timing, read_result
from deploycompress.errors import EnvironmentMissing

JOB: dict[str, Any] = {
    "runner": "r" * 64,
    "files": {"candidate0/model.onnx": "m" * 64},
    "candidates": [{"id": "a"}],
    "blocks": 2,
}
STATE = {"time_s": 1.0, "load": 0.1, "mhz": None, "celsius": None, "throttled_us": None, "stolen_ticks": 3}
GOOD: dict[str, Any] = {
    "schema": 1,
    "runner": "r" * 64,
    "error": None,
    "files": {"candidate0/model.onnx": "m" * 64},
    "candidates": {
        "a": {
            "error": None,
            "blocks_ns": [[1000, 1100], [900]],
            "load_ms": 3.5,
            "first_inference_ms": 1.0,
            "peak_memory_bytes": 1000,
            "steady": True,
            "outputs": {"y": {"finite": True, "shape": [1], "dtype": "float32"}},
            "versions": {"onnxruntime": "1.0"},
        }
    },
    "blocks": [STATE, STATE, STATE],
}


def test_a_good_answer() -> None:
    found = read_result(GOOD, JOB, "board").candidates["a"]
    assert isinstance(found, Timing)
    assert found.blocks_ns == ((1000, 1100), (900,)) and found.finite


def test_a_failed_candidate() -> None:
    answer = copy.deepcopy(GOOD)
    answer["candidates"]["a"] = {"error": {"kind": "signal", "message": "SIGILL"}, "blocks_ns": []}
    assert read_result(answer, JOB, "board").candidates["a"] == Failed("signal", "SIGILL")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["schema"], 2, "has schema 2, expected 1"),
        (["runner"], "x" * 64, "other digests than what was sent"),
        (["files"], {}, "other digests than what was sent"),
        (["candidates"], {}, "measured [], expected ['a']"),
        (["candidates", "a", "blocks_ns"], [[1000]], "has 1 blocks, expected 2"),
        (
            ["candidates", "a", "blocks_ns"],
            [[1000], [0]],
            "candidates.a.blocks_ns.1.0: Input should be greater",
        ),
        (["candidates", "a", "blocks_ns"], [[1000], []], "candidates.a.blocks_ns.1"),
        (["candidates", "a", "blocks_ns"], [[1000], ["9"]], "valid integer"),
        (
            ["candidates", "a", "load_ms"],
            float("nan"),
            "candidates.a.load_ms: Input should be a finite number",
        ),
        (["candidates", "a", "load_ms"], None, "blocks"),
        (["candidates", "a", "first_inference_ms"], -1.0, "greater than or equal to 0"),
        (["blocks"], "none", "valid list"),
        (["error"], {"kind": "busy", "message": "held by another"}, "device board: held by another"),
    ],
)
def test_a_bad_answer_is_not_used(path: list[str], value: object, reason: str) -> None:
    answer = copy.deepcopy(GOOD)
    place = answer
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(EnvironmentMissing, match="device board: ") as caught:
        read_result(answer, JOB, "board")
    assert reason in str(caught.value)


@pytest.mark.parametrize("missing", ["schema", "runner", "error", "files", "candidates", "blocks"])
def test_an_incomplete_answer(missing: str) -> None:
    answer = {key: value for key, value in GOOD.items() if key != missing}
    with pytest.raises(EnvironmentMissing, match=f"is not valid at {missing}: Field required"):
        read_result(answer, JOB, "board")
