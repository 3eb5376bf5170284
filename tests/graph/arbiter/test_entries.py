"""The candidates: each once, by what it is and how it is run."""

from __future__ import annotations

from deploycompress.config.schema import TargetConfig
from deploycompress.graph.arbiter.entries import entries
from deploycompress.graph.arbiter.wanted import Wanted

FACTS = {"architecture": "x86_64", "flags": ["avx512_vnni"]}


def ids(*wanted: dict, threads: tuple[int, ...] = (2, 1)) -> list[str]:
    found = entries([Wanted(**one) for one in wanted], TargetConfig(threads=2), threads, FACTS, {"Conv": 3})
    return [entry.id(n) for entry in found for n in entry.threads]


def test_a_runtime_has_all_of_its_recipes_with_every_number_of_threads() -> None:
    assert ids({"runtime": "onnxruntime"}) == [
        f"onnxruntime-{what}.t{n}" for what in ("fp32", "int8-u8s8", "int8-s8s8") for n in (2, 1)
    ]


def test_what_is_asked_for_twice_is_one_candidate() -> None:
    int8 = {"runtime": "onnxruntime", "scheme": "u8s8"}
    assert ids(int8, {**int8, "threads": [1]}, {**int8, "threads": [1, 1, 4]}) == [
        "onnxruntime-int8-u8s8.t2",
        "onnxruntime-int8-u8s8.t1",
        "onnxruntime-int8-u8s8.t4",
    ]


def test_an_option_that_is_given_makes_another_candidate() -> None:
    fp32 = {"runtime": "openvino", "precision": "fp32", "threads": [2]}
    assert ids(fp32, {**fp32, "options": {"static_shapes": False}}) == [
        "openvino-fp32.t2",
        "openvino-fp32.static_shapes-False.t2",
    ]


def test_without_vnni_weights_get_seven_bits_and_on_arm_both_are_signed() -> None:
    def schemes(**facts: object) -> list[str]:
        found = entries(
            [Wanted(runtime="onnxruntime", precision="int8")], TargetConfig(), (1,), facts, {"Conv": 1}
        )
        return [entry.recipe.scheme for entry in found]

    assert schemes(architecture="x86_64", flags=["avx2"]) == ["u8s8_reduced"]
    assert schemes(architecture="aarch64", flags=[]) == ["s8s8", "u8s8"]
