"""The written forms: page, summary, JUnit, terminal; and what hostile names can do to them (nothing)."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.schema import LatencyGate, PipelineConfig
from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.report.build import build
from deploycompress.report.pages import escaped
from deploycompress.report.render import (
    CUT,
    MOST_STEP_BYTES,
    MOST_SUMMARY_BYTES,
    append_to_job_summary,
    cut,
    render,
    terminal_summary,
)

Make = Callable[..., tuple[PipelineConfig, Path]]
HOSTILE = (
    "<script>alert(1)</script>|`x`]]>--><img src=x onerror=y>\"'&{{7*7}}\x1b[31m\u202e\ud800\n| a |\n# b"
)
NAMED = {
    "metrics",
    "differences",
    "parity",
    "inputs",
    "environment",
    "figures",
    "by_class",
    "intervals",
    "placement",
}  # their keys are names, too
KEPT = {"schema", "verdict", "exit_code", "state", "unit", "bound"}  # choices, which are checked as such


class Page(HTMLParser):
    """Every tag, attribute and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(value: Any, key: str = "") -> Any:
    """A report in which everything that a model, a device or a user may name is hostile."""
    if isinstance(value, Mapping):
        return {n + HOSTILE * (key in NAMED): hostile(v, n) for n, v in value.items()}
    if isinstance(value, list):
        return [hostile(v, key) for v in value]
    hostile_here = (
        isinstance(value, str) and key not in KEPT and value not in ("pass", "fail", "inconclusive")
    )
    return f"{value}{HOSTILE}" if hostile_here else value


def written(make_run: Make, **changes: Any) -> tuple[dict[str, Any], Path]:
    config, run_dir = make_run(**changes)
    report = build(config, run_dir)
    render(report, run_dir)
    return report, run_dir


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- the page


def test_the_page_tells_the_verdict_and_the_gates_first(make_run: Make) -> None:
    _, run_dir = written(make_run)
    text = Page(read(run_dir / "report.html")).text
    order = ["✓ Passed", "quantize is 4.50× as fast as the baseline", "Gates", "speed-up ≥ 3×"]
    order += [
        "Accuracy against latency",
        "on 600 samples places it",
        "Artefacts",
        "(4.34 to 4.64)",
        "How long single calls take",
        "p50 0.192 ms",
        "What each stage bought",
        "−0.638 ms",
        "What each layer takes",
        "0.40 → 0.080 ms",
        "between the layers",
        "Class by class",
        "recall of quantize against the baseline",
        "Metrics",
        "lower is better",
        "Class by class of quantize: the worst of 2 is eight, recall 96.50 % (−0.33 pp)",
    ]
    order += ["Widths", "44.5 % of 490 channels", "Parity", "1.3e-07", "Stages", "reused", "Notes"]
    order += ["TensorRT is not installed", "Make it again", "run 'pipelines/quick start.yaml'", "Environment"]
    places = [text.find(part) for part in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_the_page_holds_no_script_and_needs_no_network(make_run: Make) -> None:
    _, run_dir = written(make_run)
    html = read(run_dir / "report.html")
    page = Page(html)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object", "a", "base", "form", "use"})
    assert page.attributes.isdisjoint({"src", "href", "xlink:href", "style", "srcset"})
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html and "@import" not in html


def test_the_policy_allows_exactly_the_page_s_own_style(make_run: Make) -> None:
    _, run_dir = written(make_run)
    html = read(run_dir / "report.html")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'" in html


def test_a_failed_run_has_a_page_with_its_error(make_run: Make) -> None:
    _, run_dir = written(make_run, fails_at="export")
    text = Page(read(run_dir / "report.html")).text
    for part in ("✕ Stopped by an error", "export: the exporter refused aten::unique_dim", "not run"):
        assert part in text
    for part in ("What each stage bought", "Accuracy against latency"):
        assert part not in text


def test_inconclusive_and_failed_gates_are_named_in_the_headline(make_run: Make) -> None:
    report, _ = written(make_run, gates={"latency_p50": LatencyGate(min_speedup=4.5)})
    assert "latency_p50 cannot be decided: quantize is 4.50×" in terminal_summary(report)
    report, _ = written(make_run, gates={"latency_p50": LatencyGate(min_speedup=9)})
    assert "latency_p50 failed: quantize is 4.50×" in terminal_summary(report)


def test_the_same_report_gives_the_same_bytes(make_run: Make) -> None:
    report, run_dir = written(make_run)
    names = ("report.html", "summary.md", "junit.xml", "bencher.json", "github-action-benchmark.json")
    before = [read(run_dir / name) for name in names]
    render(report, run_dir)
    assert [read(run_dir / name) for name in names] == before


def test_every_form_of_the_smallest_report(tmp_path: Path) -> None:
    smallest = {"schema": 1, "name": "x", "verdict": "pass", "exit_code": 0, "best": None, "environment": {}}
    smallest |= {"stages": [], "artifacts": [], "measurements": [], "gates": []}
    render(smallest, tmp_path)
    assert "nothing was measured at the target." in read(tmp_path / "report.html")


def test_what_is_not_a_report_is_not_rendered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a report of this version: schema: Field required"):
        render({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- hostile names


@pytest.mark.parametrize("fails_at", [None, "export"])
def test_hostile_names_are_text_in_the_page(make_run: Make, fails_at: str | None) -> None:
    report, run_dir = written(make_run, fails_at=fails_at, competitor=0.9, earlier=4)
    plain = Page(read(run_dir / "report.html"))
    render(hostile(report), run_dir)
    html = read(run_dir / "report.html")
    page = Page(html)
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert "<script>alert(1)</script>|`x`]]>" in page.text
    assert "{{7*7}}" in page.text
    assert "\x1b" not in html and "\u202e" not in html


def test_hostile_names_stay_in_their_cell_of_the_summary(make_run: Make) -> None:
    report, run_dir = written(make_run)
    rows = [line.count("|") for line in read(run_dir / "summary.md").splitlines() if line.startswith("|")]
    render(hostile(report), run_dir)
    lines = read(run_dir / "summary.md").splitlines()
    assert [_bars(line) for line in lines if line.startswith("|")] == rows
    assert not [line for line in lines if line.startswith(("# b", "<script", "| a |"))]
    text = "\n".join(lines)
    assert "<script" not in text and "<img" not in text
    assert not re.search(r"(?<!\\)`(?!artifacts/`)(?<!artifacts/`)", text)


def _bars(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_hostile_names_are_well_formed_in_junit(make_run: Make) -> None:
    report, run_dir = written(make_run, fails_at="export")
    render(hostile(report), run_dir)
    root = ET.fromstring(read(run_dir / "junit.xml"))
    names = [case.get("name") or "" for case in root.iter("testcase")]
    assert any("<script>alert(1)</script>|`x`]]>" in name for name in names)


def test_hostile_names_cannot_steer_a_terminal(make_run: Make) -> None:
    report, _ = written(make_run)
    text = terminal_summary(hostile(report))
    assert "\x1b" not in text and "\u202e" not in text
    text.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("# title", r"\# title"),
        ("1. one", r"1\. one"),
        ("0.33 pp", "0.33 pp"),
        ("latency_p50", "latency_p50"),
        ("_x_ *y*", r"\_x\_ \*y\*"),
        ("[a](b)", r"\[a\](b)"),
        ("two\nlines", "two lines"),
        ("back\\", r"back\\"),
        ("@team or prune@2", "@\u2060team or prune@2"),  # no message to anybody
        ("fixes #1, GH-1", "fixes #\u20601, GH-\u20601"),
        ("https://x.y www.x.y", "https:\u2060//x.y www\u2060.x.y"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, shown: str) -> None:
    assert escaped(text) == shown


# ---------------------------------------------------------------- summary, JUnit


def test_the_summary_begins_with_the_verdict(make_run: Make) -> None:
    _, run_dir = written(make_run)
    lines = read(run_dir / "summary.md").splitlines()
    assert lines[0] == "## ✓ digits-edge: Passed"
    assert "| ✓ | latency_p50 | speed-up ≥ 3× | 4.50× | pass |" in "\n".join(lines)
    assert "**quantize** (best) | 81.9 KB | 0.192 ms | 0.205 ms | – | 4.50× (4.34 to 4.64)" in "\n".join(
        lines
    )


def test_a_summary_of_many_long_names_fits_into_a_comment(make_run: Make) -> None:
    report, run_dir = written(make_run)
    row, stage = report["measurements"][1], report["stages"][3]
    report["measurements"] = [row | {"artifact": f"{i}{'<&|' * 200}"} for i in range(400)]
    report["stages"] = [stage | {"name": f"{i}{'`' * 500}"} for i in range(400)]
    render(report, run_dir)
    summary = read(run_dir / "summary.md")
    assert len(summary.encode()) <= MOST_SUMMARY_BYTES
    assert "more artefacts are in report.html" in summary
    assert summary.startswith("## ✓ digits-edge: Passed")


def test_the_summary_is_appended_to_the_job_s(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = tmp_path / "job.md"
    job.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(job))
    report, run_dir = written(make_run)
    append_to_job_summary(run_dir)
    render(report, run_dir)
    assert read(job) == "before\n" + read(run_dir / "summary.md") + "\n"


@pytest.mark.parametrize("free", [2**20, 2000, 700, 10, 0, -5])
def test_a_step_s_summary_stays_within_what_github_shows(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int
) -> None:
    job = tmp_path / "job.md"
    before = "é" * ((MOST_STEP_BYTES - free) // 2)
    job.write_text(before, encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(job))
    _, run_dir = written(make_run)
    append_to_job_summary(run_dir)
    text, added = read(run_dir / "summary.md"), read(job).removeprefix(before)
    assert job.stat().st_size <= max(MOST_STEP_BYTES, len(before.encode()))
    if free == 2**20:
        assert added == text + "\n"
    elif free > len(CUT) + 20:
        assert added.endswith(CUT), "it says that it is cut"
        assert added.count("<details>") == added.count("</details>"), "what follows would be folded away"
        kept = added.removesuffix(CUT).removesuffix("</details>").rstrip("\n")
        assert text.startswith(kept + "\n") and kept
    else:
        assert added == ""


def test_a_summary_is_cut_between_lines_and_nothing_that_follows_is_folded_away(make_run: Make) -> None:
    _, run_dir = written(make_run)
    text = read(run_dir / "summary.md")
    lines = set(text.splitlines())
    folded = 0
    for most in range(len(CUT) + 30, len(text.encode())):
        short = cut(text, most)
        assert len(short.encode()) <= most and short.endswith(CUT)
        assert short.count("<details>") == short.count("</details>")
        assert set(short.removesuffix(CUT).splitlines()) <= lines
        folded += "<details>" in short
    assert folded > 100, "it was cut within what is folded, too"


def test_the_worst_names_and_numbers_of_rows_still_fit_into_a_comment(make_run: Make) -> None:
    report, run_dir = written(make_run)
    worst = "<&>" * 200
    gate = report["gates"][0] | {"metric": worst, "message": worst}
    note = {"kind": worst, "message": worst, "subject": worst}
    stage = report["stages"][3] | {"name": worst, "notes": [note | {"kind": "warning"}, note] * 30}
    row = report["measurements"][1] | {"artifact": worst, "notes": [worst + str(i) for i in range(50)]}
    report |= {"gates": [gate] * 300, "stages": [stage] * 300, "measurements": [row] * 300}
    render(report, run_dir)
    summary = read(run_dir / "summary.md")
    assert len(summary.encode()) <= MOST_SUMMARY_BYTES
    assert summary.endswith(CUT)


def test_a_job_summary_that_cannot_be_written_is_named(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "job.md"))
    _, run_dir = written(make_run)
    with pytest.raises(
        EnvironmentMissing, match=r"GITHUB_STEP_SUMMARY names .*job\.md, which cannot be written"
    ):
        append_to_job_summary(run_dir)


def junit(run_dir: Path) -> dict[str, ET.Element]:
    root = ET.fromstring(read(run_dir / "junit.xml"))
    return {case.get("name") or "": case for case in root.iter("testcase")}


def test_what_went_on_otherwise_than_asked_is_told_beside_the_verdict(make_run: Make) -> None:
    report, run_dir = written(make_run)
    note = {"kind": "warning", "message": "the target is not reached", "subject": "layer4"}
    report["stages"][3]["notes"].append(note)
    name = report["stages"][3]["name"]
    render(report, run_dir)
    summary = read(run_dir / "summary.md").splitlines()
    (place,) = (i for i, line in enumerate(summary) if line.startswith("- warning"))
    assert summary[place] == f"- warning, {name}: layer4: the target is not reached"
    assert place < next(i for i, line in enumerate(summary) if line.startswith("| "))
    assert f"  warning, {name}: layer4: the target is not reached" in terminal_summary(report).splitlines()
    told = junit(run_dir)[name].find("system-out")
    assert told is not None and "warning: layer4: the target is not reached" in (told.text or "")
    about = "quantize: 2 of 40 blocks were disturbed and measured again"
    assert f"- {about}" in "\n".join(summary) and f"  {about}" in terminal_summary(report)
    assert "left_whole: head: the classifier" in read(run_dir / "summary.md").replace("\\", "")


def test_junit_has_a_case_for_every_gate_and_every_stage(make_run: Make) -> None:
    report, run_dir = written(make_run)
    root = ET.fromstring(read(run_dir / "junit.xml"))
    assert root.get("tests") == str(len(report["gates"]) + len(report["stages"]))
    assert (root.get("failures"), root.get("errors"), root.get("skipped")) == ("0", "0", "0")
    assert set(junit(run_dir)) >= {"accuracy drop ≤ 2 pp", "latency_p50 speed-up ≥ 3×", "prune", "benchmark"}


@pytest.mark.parametrize(("policy", "tag"), [("fail", "failure"), ("warn", "skipped")])
def test_an_inconclusive_gate_in_junit_follows_its_policy(make_run: Make, policy: Any, tag: str) -> None:
    gates = {"latency_p50": LatencyGate(min_speedup=4.5, on_inconclusive=policy)}
    _, run_dir = written(make_run, gates=gates)
    found = junit(run_dir)["latency_p50 speed-up ≥ 4.5×"].find(tag)
    assert found is not None
    assert "a longer measurement is needed" in (found.get("message") or "")


def test_a_failed_stage_in_junit_is_an_error_and_what_follows_is_skipped(make_run: Make) -> None:
    _, run_dir = written(make_run, fails_at="export")
    cases = junit(run_dir)
    error, skipped = cases["export"].find("error"), cases["benchmark"].find("skipped")
    assert error is not None and error.get("message") == "export: the exporter refused aten::unique_dim"
    assert skipped is not None and skipped.get("message") == "not run: an earlier step failed"


def test_competitors_are_told_apart_in_every_form(make_run: Make) -> None:
    report, run_dir = written(make_run, competitor=0.9)
    assert "| mobile (competitor) |" in read(run_dir / "summary.md")
    assert "     mobile (competitor)  " in terminal_summary(report)
    text = Page(read(run_dir / "report.html")).text
    assert "competitor, not of this run" in text and "mobile competitor" in " ".join(text.split())
    entry = next(a for a in report["artifacts"] if a["id"] == "mobile")
    assert (entry["path"], entry["stage"]) == ("08-benchmark/competitors/mobile/model.onnx", "benchmark")
