"""GitHub's annotations, read back as its runner reads them; and what hostile names can do to them (nothing)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.schema import LatencyGate, PipelineConfig
from deploycompress.errors import Problem
from deploycompress.report.annotations import MOST, commands_stopped, defused, of_mistakes, of_report
from deploycompress.report.build import build

Make = Callable[..., tuple[PipelineConfig, Path]]
Obeyed = Callable[[str], list[tuple[str, dict[str, str], str]]]
HOSTILE = "50%0A\r\n::error file=x::%25,:=\r##[add-mask]y\u2028\n  ::stop-commands::z"


@pytest.fixture(autouse=True)
def on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("where", "properties", "message"),
    [
        ("a.yaml:12:9", {"file": "a.yaml", "line": "12", "col": "9"}, "gates.x: wrong"),
        ("C:a,b%3A.yaml:1:2", {"file": "C:a,b%3A.yaml", "line": "1", "col": "2"}, "gates.x: wrong"),
        ("a.yaml", {"file": "a.yaml"}, "gates.x: wrong"),
        ("--set gates.x=a.yaml:1:2", {}, "--set gates.x=a.yaml:1:2: gates.x: wrong"),
        ("", {}, "gates.x: wrong"),
    ],
)
def test_a_mistake_stands_at_its_place(
    obeyed: Obeyed, where: str, properties: dict[str, str], message: str
) -> None:
    if "file" in properties:  # absolute, since a job's step may work in any folder
        properties = properties | {"file": os.path.abspath(properties["file"])}
    lines = of_mistakes([Problem("wrong", where, "gates.x")])
    assert obeyed("\n".join(lines)) == [("error", properties | {"title": "Configuration"}, message)]


def test_a_mistake_in_hostile_words_is_one_annotation_that_says_them(obeyed: Obeyed) -> None:
    (line,) = of_mistakes([Problem(HOSTILE, f"{HOSTILE}:3:4", "")])
    ((name, properties, message),) = obeyed(line)
    assert (name, message) == ("error", HOSTILE)
    assert properties == {
        "file": os.path.abspath(HOSTILE),
        "line": "3",
        "col": "4",
        "title": "Configuration",
    }


@pytest.mark.parametrize(
    ("count", "last"), [(MOST, "mistake 9"), (MOST + 3, "4 more mistakes are in the log")]
)
def test_no_more_than_github_shows_and_the_last_says_how_many_are_left(
    obeyed: Obeyed, count: int, last: str
) -> None:
    lines = of_mistakes([Problem(f"mistake {number}", f"a.yaml:{number + 1}:1") for number in range(count)])
    found = obeyed("\n".join(lines))
    assert len(found) == MOST
    assert found[MOST - 2][2] == "mistake 8" and found[-1][2].startswith(last)


def test_a_long_message_fits_the_runner(obeyed: Obeyed) -> None:
    ((_, _, message),) = obeyed(of_mistakes([Problem("é%" * 5000)])[0])
    assert 3000 < len(message) <= 4096 and message.endswith("…")


# ---------------------------------------------------------------- gates


def judged(make_run: Make, **changes: Any) -> dict[str, Any]:
    return build(*make_run(**changes))


def test_a_run_whose_gates_hold_says_nothing(make_run: Make) -> None:
    assert of_report(judged(make_run), {}) == []


def test_a_failed_gate_stands_at_its_key(make_run: Make, obeyed: Obeyed) -> None:
    report = judged(make_run, gates={"latency_p50": LatencyGate(min_speedup=9)})
    ((name, properties, message),) = obeyed("\n".join(of_report(report, {"latency_p50": "p.yaml:31:3"})))
    assert name == "error"
    assert properties == {
        "file": os.path.abspath("p.yaml"),
        "line": "31",
        "col": "3",
        "title": "digits-edge: latency_p50 failed",
    }
    assert message.startswith("4.50×, wanted speed-up ≥ 9×: 4.50× the baseline's speed")


@pytest.mark.parametrize(
    ("policy", "titles"), [("fail", ["digits-edge: latency_p50 cannot be decided"]), ("warn", [])]
)
def test_an_inconclusive_gate_follows_its_policy(
    make_run: Make, obeyed: Obeyed, policy: Any, titles: list[str]
) -> None:
    report = judged(make_run, gates={"latency_p50": LatencyGate(min_speedup=4.5, on_inconclusive=policy)})
    assert [properties["title"] for _, properties, _ in obeyed("\n".join(of_report(report, {})))] == titles


@pytest.mark.parametrize(("kind", "messages"), [("StageFailed", 0), ("ConfigError", 1)])
def test_a_step_that_failed_is_annotated_only_where_the_configuration_was_at_fault(
    make_run: Make, obeyed: Obeyed, kind: str, messages: int
) -> None:
    report = judged(make_run, fails_at="export")
    assert report["gates"], "they are in the report, and were not judged"
    report["error"]["class"] = kind
    found = obeyed("\n".join(of_report(report, {})))
    assert len(found) == messages
    assert all("the exporter refused aten::unique_dim\nin layer2.0" in message for _, _, message in found)


def test_a_gate_in_hostile_words_is_one_annotation(make_run: Make, obeyed: Obeyed) -> None:
    report = judged(make_run, gates={"latency_p50": LatencyGate(min_speedup=9)})
    for key in ("metric", "bound", "message"):
        report["gates"][0][key] = HOSTILE
    lines = of_report(report | {"name": HOSTILE}, {})
    ((name, properties, message),) = obeyed("\n".join(lines))
    assert name == "error" and set(properties) == {"title"}
    assert properties["title"].startswith("50%0A  ::error file=x::%25,:= ##[add-mask]y")
    assert "##[add-mask]y" in message


# ---------------------------------------------------------------- the rest of the output


def test_nothing_printed_meanwhile_is_obeyed(obeyed: Obeyed) -> None:
    lines: list[str] = []
    with pytest.raises(KeyError):
        with commands_stopped(lines.append):
            lines += [HOSTILE, "::error::no", "::end::"]
            raise KeyError
    lines.append("::error::yes")
    assert obeyed("\n".join(lines)) == [("error", {}, "yes")]
    again: list[str] = []
    with commands_stopped(again.append):
        pass
    assert again[0] != lines[0], "a token that is always the same can be printed by a name"


def test_a_defused_text_is_no_command_and_reads_the_same(obeyed: Obeyed) -> None:
    assert obeyed(HOSTILE.replace("::stop-commands::z", "")) != []
    assert obeyed(defused(HOSTILE)) == []
    assert defused("layer::conv1: 3:5") == "layer::conv1: 3:5"


def test_elsewhere_than_on_github_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")
    lines: list[str] = []
    with commands_stopped(lines.append):
        pass
    assert lines == [] and defused(HOSTILE) == HOSTILE
