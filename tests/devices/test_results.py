"""A device's answer is read like any untrusted input."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from deploycompress.devices.results import Failed, Result, Timing, read_result
from deploycompress.errors import EnvironmentMissing

JOB: dict[str, Any] = {
    "runner": "r" * 64,
    "files": {"candidate0/model.onnx": "m" * 64},
    "candidates": [{"id": "a", "runtime": "onnxruntime", "options": {"provider": "cpu"}}],
    "blocks": 2,
    "extra_blocks": 1,
    "fewest_blocks": 2,
}
STATE = {"time_s": 1.0, "load": 0.1, "celsius": None, "throttled_us": None, "stolen_ticks": 3}
BLOCK = {"samples_ns": [1000, 1100], "cpu_share": 1.0, "mhz": None, "energy_uj": {}}
GOOD: dict[str, Any] = {
    "schema": 2,
    "runner": "r" * 64,
    "error": None,
    "files": {"candidate0/model.onnx": "m" * 64},
    "candidates": {
        "a": {
            "error": None,
            "blocks": [BLOCK, {**BLOCK, "samples_ns": [900]}],
            "load_ms": 3.5,
            "first_inference_ms": 1.0,
            "peak_memory_bytes": 1000,
            "steady": True,
            "outputs": {"y": {"finite": True, "shape": [1], "dtype": "float32"}},
            "versions": {"onnxruntime": "1.0"},
        }
    },
    "states": [STATE, STATE, STATE],
}


def test_a_good_answer() -> None:
    found = read_result(GOOD, JOB, "board").candidates["a"]
    assert isinstance(found, Timing)
    assert found.blocks_ns == ((1000, 1100), (900,)) and found.finite


def test_more_or_fewer_rounds_than_were_asked_for_are_not_used() -> None:
    for rounds in (1, 4):
        answer = copy.deepcopy(GOOD)
        answer["candidates"]["a"]["blocks"] = [BLOCK] * rounds
        answer["states"] = [STATE] * (rounds + 1)
        with pytest.raises(EnvironmentMissing, match=f"it measured {rounds} rounds, expected 2 to 3"):
            read_result(answer, JOB, "board")


def test_of_slow_candidates_the_fewest_rounds_are_enough() -> None:
    found = read_result(GOOD, {**JOB, "blocks": 20, "fewest_blocks": 2}, "board")
    assert found.quiet and len(found.disturbed) == 2


@pytest.mark.parametrize(("ticks", "seconds", "stolen"), [(1, 0.1, False), (2, 0.1, True), (2, 1.0, False)])
def test_time_that_others_had_counts_from_a_share_of_it_and_more_than_a_tick(
    ticks: int, seconds: float, stolen: bool
) -> None:
    answer = copy.deepcopy(GOOD)
    answer["states"] = [STATE, STATE, {**STATE, "time_s": 1.0 + seconds, "stolen_ticks": 3 + ticks}]
    assert read_result(answer, JOB, "board").disturbed[1] == (("stolen",) if stolen else ())


def test_another_frequency_policy_disturbs_the_round_in_which_it_came() -> None:
    answer = copy.deepcopy(GOOD)
    answer["states"] = [{**STATE, "governor": name} for name in ("performance", "performance", "powersave")]
    assert read_result(answer, JOB, "board").disturbed == ((), ("policy",))


def test_disturbed_rounds_are_left_out_while_enough_are_left() -> None:
    answer = copy.deepcopy(GOOD)
    answer["states"] = [STATE] * 4
    samples = ([1000], [7000], [1100])
    answer["candidates"]["a"]["blocks"] = [
        {
            **BLOCK,
            "samples_ns": each,
            "cpu_share": 0.5 if each == [7000] else 1.0,
            "energy_uj": {"package-0": 9},
        }
        for each in samples
    ]
    found = read_result(answer, JOB, "board")
    timing = found.candidates["a"]
    assert isinstance(timing, Timing) and found.quiet and found.disturbed == ((), ("crowded",), ())
    assert (timing.blocks_ns, timing.set_aside_ns) == (((1000,), (1100,)), ((7000,),))
    assert timing.energy_uj == {"package-0": 18}
    for state, number in zip(answer["states"], range(4), strict=True):
        answer["states"][number] = {**state, "throttled_us": number}
    found = read_result(answer, JOB, "board")
    timing = found.candidates["a"]
    assert isinstance(timing, Timing) and not found.quiet
    assert timing.blocks_ns == tuple(map(tuple, samples)) and timing.set_aside_ns == ()


def test_what_disturbed_more_than_a_few_rounds_is_told() -> None:
    def remarks(crowded: int, quiet: bool) -> tuple[str, ...]:
        return Result({}, (), (("crowded",),) * crowded + ((),) * (40 - crowded), quiet).remarks()

    assert remarks(0, True) == remarks(4, True) == ()
    (left_out,) = remarks(5, True)
    assert left_out.startswith("5 of 40 rounds were disturbed (5 ") and left_out.endswith(
        "which are left out"
    )
    assert "so the times decide nothing" in remarks(30, False)[0]


def test_a_failed_candidate() -> None:
    answer = copy.deepcopy(GOOD)
    answer["candidates"]["a"] = {"error": {"kind": "signal", "message": "SIGILL"}, "blocks": []}
    assert read_result(answer, JOB, "board").candidates["a"] == Failed("signal", "SIGILL")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["schema"], 1, "has schema 1, expected 2"),
        (["runner"], "x" * 64, "other digests than what was sent"),
        (["files"], {}, "other digests than what was sent"),
        (["candidates"], {}, "measured [], expected ['a']"),
        (["candidates", "a", "blocks"], [BLOCK], "a has 1 blocks of 2 rounds"),
        (["states"], [STATE] * 2, "a has 2 blocks of 1 rounds"),
        (
            ["candidates", "a", "blocks", 1, "samples_ns"],
            [0],
            "blocks.1.samples_ns.0: Input should be greater",
        ),
        (["candidates", "a", "blocks", 1, "samples_ns"], [], "candidates.a.blocks.1.samples_ns"),
        (["candidates", "a", "blocks", 0, "samples_ns"], ["9"], "valid integer"),
        (["candidates", "a", "blocks", 0, "cpu_share"], -1.0, "greater than or equal to 0"),
        (["candidates", "a", "blocks", 0, "mhz"], 0.0, "greater than 0"),
        (["candidates", "a", "blocks", 0, "energy_uj"], {"package-0": -5}, "greater than or equal to 0"),
        (
            ["candidates", "a", "load_ms"],
            float("nan"),
            "candidates.a.load_ms: Input should be a finite number",
        ),
        (["candidates", "a", "load_ms"], None, "blocks"),
        (["candidates", "a", "first_inference_ms"], -1.0, "greater than or equal to 0"),
        (["states"], "none", "valid list"),
        (["error"], {"kind": "busy", "message": "held by another"}, "device board: held by another"),
    ],
)
def test_a_bad_answer_is_not_used(path: list[Any], value: object, reason: str) -> None:
    answer = copy.deepcopy(GOOD)
    place: Any = answer
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(EnvironmentMissing, match="device board: ") as caught:
        read_result(answer, JOB, "board")
    assert reason in str(caught.value)


@pytest.mark.parametrize("missing", ["schema", "runner", "error", "files", "candidates", "states"])
def test_an_incomplete_answer(missing: str) -> None:
    answer = {key: value for key, value in GOOD.items() if key != missing}
    with pytest.raises(EnvironmentMissing, match=f"is not valid at {missing}: Field required"):
        read_result(answer, JOB, "board")
