"""``compare`` on two files and on two run directories: really measured, and refused where it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deploycompress.cli import main
from deploycompress.commands.comparison import metric_line, plain_line, worst_class_line
from deploycompress.measure.intervals import noise_floor, paired_speedup, ratio, word
from deploycompress.measure.machines import differences, versions_apart
from deploycompress.measure.measurement import Speedup
from deploycompress.report import speed
from deploycompress.report.document import Metric


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    return ended.value.code, said.out, " ".join(said.err.replace("│", " ").split())


def run_until_decided(capsys, *arguments):
    """Again, twice at most, where others disturbed so much of it that a gate is left as its run judged it."""
    for _ in range(3):
        code, out, err = run(capsys, *arguments)
        if "not decided by mode quick" not in out:
            break
    return code, out, err


def rows_of(path):
    return {row["metric"]: row for row in json.loads(path.read_text())["rows"]}


SPEED = ("latency_p50", "latency_p90", "latency_p99", "throughput")


# ---------------------------------------------------------------- two files


@pytest.mark.quiet
def test_a_slower_file_is_worse(network, shortly, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, head = network(Path("base.onnx")), network(Path("head.onnx"), 12)
    file = tmp_path / "found.json"
    code, out, err = run(capsys, base, head, "--format", "json", "--output", file, "--fail-on", "worse")
    assert (code, out) == (5, "") and "error: HEAD is slower: p50 +" in err
    rows = rows_of(file)
    p50, throughput = rows["latency_p50"], rows["throughput"]
    assert p50["verdict"] == throughput["verdict"] == rows["artifact_size"]["verdict"] == "worse"
    assert 0.03 < p50["change"]["low"] <= p50["change"]["value"] <= p50["change"]["high"]
    assert throughput["change"]["high"] < -0.03 and throughput["head"] < throughput["base"]
    assert p50["change"]["unit"] == "ratio" and p50["head"] > 2 * p50["base"]
    code, out, err = run(capsys, head, base)
    assert code == 0 and out.startswith("HEAD is faster: p50 −"), err
    assert "better" in out and "worse" not in out
    assert "measured now, side by side on one machine" in out


@pytest.mark.quiet
def test_tails_are_compared_where_they_were_measured_for_long(
    network, shortly, tmp_path, capsys, monkeypatch
):
    base, head, file = (
        network(tmp_path / "base.onnx"),
        network(tmp_path / "head.onnx", 12),
        tmp_path / "found.json",
    )
    words = []
    for long_enough in (speed.LONG_ENOUGH, (64, 0.0)):
        monkeypatch.setattr(speed, "LONG_ENOUGH", long_enough)
        assert run(capsys, base, head, "--format", "json", "--output", file)[0] == 0
        rows = rows_of(file)
        words.append([(rows[m]["verdict"], rows[m]["message"]) for m in ("latency_p50", "latency_p90")])
        assert rows["latency_p90"]["change"]["value"] > 0.03
    assert words == [[("worse", ""), ("cannot tell", "takes --mode full")], [("worse", ""), ("worse", "")]]


def test_one_file_twice_is_the_same(network, shortly, tmp_path, capsys):
    base = network(tmp_path / "base.onnx")
    shutil.copyfile(base, tmp_path / "head.onnx")
    code, out, err = run(capsys, base, tmp_path / "head.onnx", "--fail-on", "worse")
    assert code == 0 and out.startswith("HEAD is as fast: p50 "), err
    assert out.count("same: BASE and HEAD are the same file") == 6


def test_equal_work_in_two_files_is_measured(network, shortly, tmp_path, capsys):
    """Other numbers in the matrices, which take as long to multiply with; the nightly test asks whether it is told."""
    file = tmp_path / "found.json"
    base, head = network(tmp_path / "base.onnx", 4), network(tmp_path / "head.onnx", 4, seed=1)
    code, _, err = run(capsys, base, head, "--format", "json", "--output", file, "--fail-on", "worse")
    rows = rows_of(file)
    assert code == (5 if any(row["verdict"] == "worse" for row in rows.values()) else 0), (err, rows)
    assert rows["latency_p50"]["change"] is not None
    assert rows["artifact_size"]["verdict"] == "same"
    assert any("warning: cosine of the outputs" in n for n in json.loads(file.read_text())["notes"])


@pytest.mark.nightly
@pytest.mark.quiet
def test_equal_work_in_two_files_is_neither_better_nor_worse(network, tmp_path, capsys):
    file = tmp_path / "found.json"
    large = {"shape": (64, 192)}
    base, head = (
        network(tmp_path / "base.onnx", 4, **large),
        network(tmp_path / "head.onnx", 4, seed=1, **large),
    )
    code, _, err = run(capsys, base, head, "--format", "json", "--output", file, "--fail-on", "worse")
    assert code == 0 and rows_of(file)["latency_p50"]["verdict"] in ("same", "cannot tell"), err


def test_markdown_shows_names_as_they_are(network, shortly, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = network(tmp_path / "a|b<img>.onnx")
    code, out, err = run(capsys, base.name, base.name, "--format", "markdown")
    assert code == 0, err
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert (
        out.startswith("## HEAD is as fast: p50 ") and "<img>" not in out and "a\\|b&lt;img&gt;.onnx" in out
    )
    assert {line.replace("\\|", "").count("|") for line in table} == {8} and len(table) == 9


# ---------------------------------------------------------------- two runs


@pytest.fixture
def runs(network, run_directory, tmp_path):
    """BASE and HEAD of a pipeline; ``make(...)`` says what is special about HEAD, ``base`` about BASE."""

    def make(layers=(2, 1), base=None, **head):
        files = [network(tmp_path / f"{i}.onnx", count) for i, count in enumerate(layers)]
        first = run_directory(tmp_path / "base", files[0], **(base or {}))
        return first, run_directory(tmp_path / "head", files[1], **head)

    return make


@pytest.mark.quiet
def test_runs_of_this_machine_are_measured_anew(runs, shortly, tmp_path, capsys):
    # The reports say that HEAD is slower; what is measured now says that it is not.
    base, head = runs((6, 1), base={"speedup": 4.0}, speedup=0.5, scores=(1,) * 60 + (0,) * 40)
    file = tmp_path / "found.json"
    code, _, err = run(capsys, base, head, "--format", "json", "--output", file)
    assert code == 0, err
    document, rows = json.loads(file.read_text()), rows_of(file)
    assert document["measured"] and document["headline"].startswith("HEAD is faster: p50 −")
    assert [rows[m]["verdict"] for m in ("latency_p50", "throughput")] == ["better", "better"]
    accuracy = rows["accuracy"]
    assert (accuracy["base"], accuracy["head"]) == (0.5, 0.6) and accuracy[
        "message"
    ] == "paired on 100 samples"
    assert accuracy["change"]["value"] == pytest.approx(0.1)
    assert accuracy["change"]["low"] < 0.1 < accuracy["change"]["high"]
    assert rows["worst_class"]["verdict"] == "cannot tell" and rows["artifact_size"]["verdict"] == "better"


@pytest.mark.quiet
def test_gates_of_head_are_judged_on_fresh_figures(runs, network, shortly, tmp_path, capsys):
    # In the report the gate on latency was met: 2 times as fast as a baseline that is now the faster one.
    limits = "{latency_p50: {min_speedup: 1.5}, artifact_size: {max: 1 MB}}"
    gates = [
        {"metric": "latency_p50", "bound": "min_speedup", "limit": 1.5, "value": 2.0, "unit": "x"},
        {"metric": "artifact_size", "bound": "max", "limit": 1e6, "value": 1e5, "unit": "bytes"},
    ]
    common = {"baseline": network(tmp_path / "common.onnx")}
    base, head = runs((1, 6), base=common, limits=limits, gates=gates, **common)
    code, out, err = run_until_decided(capsys, base, head)
    assert code == 5 and "gates not met: latency_p50" in err
    assert "speed-up ≥ 1.5×" in out and "fail" in out and "≤ 1 MB" in out and "pass" in out
    code, out, _ = run_until_decided(capsys, base, head, "--fail-on", "never")
    assert code == 0 and "gates not met: latency_p50" in out
    code, out, err = run(capsys, base, head, "--no-measure")  # as the run judged it
    assert code == 0 and "nothing was measured: --no-measure was given" in out, err


@pytest.mark.quiet
def test_of_a_run_whose_baseline_was_not_kept_the_gates_against_it_are_the_recorded_ones(
    runs, shortly, tmp_path, capsys
):
    """As of a CI job that keeps less than the whole directory."""
    limits = "{latency_p50: {min_speedup: 1.5}, latency_p90: {max: 1 min}, peak_memory: {max: 1 MB}}"
    gates = [
        {"metric": "latency_p50", "bound": "min_speedup", "limit": 1.5, "value": 2.0, "unit": "x"},
        {"metric": "latency_p90", "bound": "max", "limit": 6e4, "value": 1.0, "unit": "ms"},
        {"metric": "peak_memory", "bound": "max", "limit": 1e6, "value": 1e5, "unit": "bytes"},
    ]
    base, head = runs((1, 6), limits=limits, gates=gates)
    (head / "00-made" / "model.onnx").unlink()
    code, out, err = run(capsys, base, head, "--fail-on", "never")
    assert code == 0, err
    assert "the gates on latency_p50 are as HEAD's run judged them: " in out and "its file is gone" in out
    assert "gates not met: peak_memory" in out  # that one is judged on what was measured now


def test_what_mode_quick_does_not_decide_is_left_as_the_run_decided_it(
    runs, shortly, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(speed, "undecided", lambda row: "others had the machine")
    gates = [{"metric": "latency_p50", "bound": "max", "limit": 6e4, "value": 1.0, "unit": "ms"}]
    base, head = runs((2, 1), limits="{latency_p50: {max: 1 min}, throughput: {min: 1}}", gates=gates)
    code, out, _ = run(capsys, base, head)
    assert code == 5 and "gates not met: throughput" in out, "that one was not decided then either"
    assert "latency_p50: not decided by mode quick, and as HEAD's run judged it" in out


@pytest.mark.quiet
def test_a_gate_on_the_p99_is_left_as_it_was_in_mode_quick(runs, shortly, tmp_path, capsys):
    gates = [{"metric": "latency_p99", "bound": "max", "limit": 6e4, "value": 1.0, "unit": "ms"}]
    base, head = runs((2, 1), limits="{latency_p99: {max: 1 min}}", gates=gates)
    code, out, err = run(capsys, base, head)
    assert code == 0, err
    assert "the gate on latency_p99 is as HEAD's run judged it; --mode full measures it anew" in out


def boards(base, head, **changed):
    """Both measured on ``board``; HEAD's has ``changed`` facts."""
    for path, more in ((base, {}), (head, changed)):
        report = json.loads((path / "report.json").read_text())
        there = report["environment"]["machine"] | {"cpu": "a board's", "name": "board"} | more
        spoilt(
            path,
            target=report["target"] | {"device": "board"},
            environment=report["environment"] | {"devices": {"board": there}},
        )
    return base, head


def test_two_boards_of_one_name_are_two_machines(runs, network, tmp_path, capsys):
    common = network(tmp_path / "common.onnx", 3)
    sides = {"baseline": common}
    base, head = boards(*runs(base={**sides, "speedup": 2.0}, speedup=4.0, **sides), cpu="another's")
    code, out, _ = run(capsys, base, head)
    assert code == 3 and "different machines (processor: a board's against another's)" in out
    base, head = boards(base, head)  # the same one, whichever machine asked it
    report = json.loads((head / "report.json").read_text())
    host = report["environment"]["machine"] | {"cpu": "another host's"}
    spoilt(head, environment=report["environment"] | {"machine": host})
    code, out, err = run(capsys, base, head)
    assert code == 0 and "the device board is not known here: give --devices FILE" in out, err
    assert out.startswith("HEAD is faster: p50 −")  # over their common baseline


def test_a_loss_of_accuracy_is_worse(runs, capsys):
    base, head = runs(base={"scores": (1,) * 100}, scores=(1,) * 50 + (0,) * 50)
    code, out, _ = run(capsys, base, head, "--no-measure", "--fail-on", "worse")
    assert code == 5 and "−50.00 pp (−" in out and "worse: paired on 100 samples" in out


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"seed": 1, "scores": (1,) * 100}, "two figures, without scores of the same samples"),
        ({"scores": (1,) * 99}, "the two runs were not judged on the same test samples"),
    ],
)
def test_other_samples_are_not_paired(runs, capsys, head, message):
    _, out, _ = run(capsys, *runs(**head), "--no-measure")
    assert message in out and "not judged on the same test samples" in out and "paired" not in out


def test_figures_of_two_machines_never_meet(runs, tmp_path, capsys):
    machine = {"cpu": "Another processor", "cores": 64, "memory_bytes": 1}
    base, head = runs(base={"machine": machine})
    file = tmp_path / "found.json"
    code, _, err = run(capsys, base, head, "--format", "json", "--output", file)
    assert code == 3 and "no speed could be compared" in err and "compare the two artefacts" in err
    assert "processor: Another processor against " in err and "cores: 64 against " in err
    rows = rows_of(file)
    for metric in (*SPEED, "peak_memory", "load"):
        assert rows[metric]["verdict"] == "not compared" and rows[metric]["change"] is None
        assert "different machines (processor: Another processor" in rows[metric]["message"]
    assert rows["artifact_size"]["verdict"] == "better" and rows["accuracy"]["verdict"] == "same"
    code, _, _ = run(capsys, base, head, "--fail-on", "never")
    assert code == 0


def test_runs_of_another_machine_are_compared_over_their_baseline(runs, network, tmp_path, capsys):
    machine = {"cpu": "Another processor"}
    common = network(tmp_path / "common.onnx", 3)
    file = tmp_path / "found.json"
    sides = {"machine": machine, "baseline": common}
    base, head = runs(base={**sides, "speedup": 2.0}, speedup=4.0, **sides)
    code, _, err = run(capsys, base, head, "--format", "json", "--output", file)
    assert code == 0, err
    found, p50 = json.loads(file.read_text()), rows_of(file)["latency_p50"]
    assert not found["measured"] and "this is not the machine of the two runs" in found["notes"][0]
    assert p50["verdict"] == "better" and p50["change"]["value"] == pytest.approx(-0.5)
    assert p50["change"]["low"] < -0.5 < p50["change"]["high"]
    assert rows_of(file)["throughput"]["verdict"] == "not compared"


def test_without_a_common_baseline_two_times_tell_nothing(runs, capsys):
    code, out, err = run(capsys, *runs(speedup=9.0), "--no-measure")
    assert (
        code == 3
        and "not compared: measured at different times" in out
        and "no speed could be compared" in err
    )


def spoilt(path, **changed):
    report = json.loads((path / "report.json").read_text())
    (path / "report.json").write_text(json.dumps(report | changed))


def artifact(run, **changed):
    report = json.loads((run / "report.json").read_text())
    report["artifacts"][1] |= changed
    spoilt(run, artifacts=report["artifacts"])


MISTAKES = {
    "no report": (lambda p: (p / "report.json").unlink(), "head is no finished run: head/report.json does not exist"),
    "half a report": (lambda p: (p / "report.json").write_text('{"schema": 1,'), "cannot be read as a report"),
    "not a report": (lambda p: (p / "report.json").write_text("[]"), "cannot be read as a report"),
    "stopped": (
        lambda p: spoilt(p, verdict="error", error={"message": "prune crashed", "class": "StageFailed"}),
        "head is no finished run (prune crashed)",
    ),
    "nothing measured": (lambda p: spoilt(p, best=None), "head is no finished run (nothing was measured"),
    "another task": (lambda p: spoilt(p, primary={"name": "miou"}), "runs of different tasks cannot be compared"),
    "file gone": (lambda p: (p / "01-made" / "model.onnx").unlink(), "is not the artefact that was made: its file is gone"),
    "file changed": (lambda p: (p / "01-made" / "model.onnx").write_bytes(b"x"), "is not the artefact that was made"),
    "file elsewhere": (lambda p: artifact(p, path="../0.onnx"), "leads outside the run directory"),
    "file at the root": (lambda p: artifact(p, path="/etc/hostname"), "leads outside the run directory"),
    "no files": (lambda p: artifact(p, files=7), "the record of export cannot be read"),
    "no gates": (lambda p: (p / "config.yaml").write_text("gates: {latency_p50: 3}"), "its gates cannot be read"),
    "no configuration": (lambda p: (p / "config.yaml").unlink(), "its gates cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_run_directory_that_is_damaged(runs, tmp_path, capsys, monkeypatch, shortly, case):
    _, head = runs()
    spoil, message = MISTAKES[case]
    spoil(head)
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "base", "head")
    assert (code, out) == (2, "") and message in err, err


def test_a_report_names_no_code_to_be_run(runs, tmp_path, capsys, monkeypatch):
    base, head = runs()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('done', 'w')")
    monkeypatch.chdir(tmp_path)
    report = json.loads((head / "report.json").read_text())
    rows, made = report["measurements"], report["artifacts"]
    spoilt(head, measurements=[rows[0], rows[1] | {"runtime": "evil:Runtime"}])
    code, _, err = run(capsys, base, head)
    assert code == 2 and "the runtime evil:Runtime, which is not built in" in err
    spoilt(
        head,
        measurements=rows,
        artifacts=[made[0], made[1] | {"details": {"runtime": "evil:Runtime", "options": 7}}],
    )
    target = report["target"] | {"device": "evil:Device"}
    for path in (base, head):
        spoilt(path, target=target)
    for path in (base, head):
        told = {"evil:Device": report["environment"]["machine"]}
        spoilt(path, environment=report["environment"] | {"devices": told})
    code, out, _ = run(capsys, base, head)
    assert code == 3 and "the device evil:Device is not known here" in out
    declared = tmp_path / "devices.yaml"
    declared.write_text("board: {ssh: nobody@127.0.0.1, port: 1}\n")
    code, out, _ = run(capsys, base, head, "--devices", declared)
    assert code == 3 and "the device evil:Device is not known here" in out
    assert not (tmp_path / "done").exists()


def test_damaged_scores_leave_the_two_figures(runs, capsys):
    base, head = runs()
    (head / "07-benchmark" / "scores.json").write_text('{"export": ["x"]}')
    _, out, _ = run(capsys, base, head, "--no-measure", "--fail-on", "never")
    assert "accuracy" in out and "paired" not in out
    spoilt(
        head,
        stages=[
            {
                "name": "benchmark",
                "kind": "benchmark",
                "seconds": 1,
                "reused": False,
                "directory": "../base/07-benchmark",
            }
        ],
    )
    _, out, _ = run(capsys, base, head, "--no-measure", "--fail-on", "never")
    assert "paired" not in out


def test_a_hostile_name_is_no_markup_and_no_command(runs, capsys, monkeypatch, obeyed):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    name = "\n::error::x|<script>##[error]y"
    gates = [{"metric": name, "bound": name, "message": name, "unit": "", "verdict": "fail"}]
    base, head = runs(gates=gates, name="export")
    for form in ("text", "markdown", "json"):
        _, out, _ = run(capsys, base, head, "--no-measure", "--format", form)
        assert obeyed(out) == []
        assert form != "markdown" or "<script>" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx", "0.onnx"], "none.onnx does not exist; expected an ONNX file"),
        (["base", "0.onnx"], "base is a run directory and 0.onnx is none"),
        (["base", "head", "--threads", "2"], "are for artefacts; runs are compared at their target"),
        (["0.onnx", "1.onnx", "--no-measure"], "--no-measure is for two run directories"),
        (["0.onnx"], "Missing argument 'HEAD'"),
        (["0.onnx", "1.onnx", "--output", "no/such.md"], "there is no folder no to write such.md into"),
        (["0.onnx", "1.onnx", "--format", "html"], "'html' is not one of"),
    ],
)
def test_mistakes(runs, tmp_path, capsys, monkeypatch, arguments, message):
    runs()
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and message in err, err


@pytest.mark.slow
def test_a_real_run_beside_itself(tiny, tmp_path, command):
    """A pipeline as users run it; nothing of its directory is made for this test."""
    out = tmp_path / "run"
    code, said = command("run", tiny, "--out", out, "--no-rehearsal", cwd=tmp_path)
    assert code == 0, said
    shutil.copytree(out, tmp_path / "copy")
    code, said = command("compare", out, tmp_path / "copy", "--fail-on", "worse", cwd=tmp_path)
    assert code == 0, said
    assert "HEAD is as fast: p50 " in said and "same: paired on 600 samples" in said
    assert "≤ 1 MB" in said and "same: no class lost" in said


# ---------------------------------------------------------------- what decides


def test_what_a_speed_up_says():
    assert word(Speedup(1.2, 1.1, 1.3), 0.0) == "faster" and word(Speedup(0.8, 0.7, 0.9), 0.0) == "slower"
    assert word(Speedup(1.05, 1.02, 1.07), 0.0) == "faster"
    assert word(Speedup(1.2, 0.99, 1.3), 0.0) == "cannot tell"  # the interval holds 1
    assert word(Speedup(1.02, 1.015, 1.035), 0.0) == "cannot tell"  # below what two processes differ by
    assert word(Speedup(1.1, 1.05, 1.2), 0.06) == "cannot tell"  # below twice the floor of this machine
    assert word(Speedup(1.01, 0.98, 1.025), 0.0) == "as fast" == word(Speedup(1.02, 1.015, 1.025), 0.0)
    assert noise_floor(Speedup(0.98, 0.95, 1.01)) == pytest.approx(1 / 0.98 - 1)
    assert noise_floor(Speedup(1.02, 1.0, 1.05)) == pytest.approx(0.02)


def test_an_error_is_better_the_lower_it_is():
    mae = Metric(name="mae", higher_is_better=False, unit="")
    low, high = [0.1 + i / 1000 for i in range(50)], [0.4 + i / 1000 for i in range(50)]
    assert metric_line("mae", mae, (0.1, 0.4), (low, high)).verdict == "worse"
    assert metric_line("mae", mae, (0.4, 0.1), (high, low)).verdict == "better"
    assert metric_line("mae", mae, (0.1, 0.1), (low, low)).verdict == "same"
    assert metric_line("mae", mae, (0.1, 0.4), None).verdict == "cannot tell"
    assert metric_line("mae", mae, (None, 0.4), None).verdict == "not compared"
    line = worst_class_line(mae, {"a": 0.1, "b": 0.3}, {"a": 0.5, "b": 0.2})
    assert (
        line is not None
        and (line.base, line.head) == (0.3, 0.5)
        and line.message == "class a lost most: 0.400"
    )
    assert worst_class_line(mae, {}, {"a": 0.1}) is None


def test_plain_figures():
    assert plain_line("packed_size", "bytes", 1000, 1009).verdict == "same"
    assert plain_line("packed_size", "bytes", 1000, 1020).verdict == "worse"
    assert plain_line("packed_size", "bytes", None, 1020).verdict == "not compared"
    assert plain_line("peak_memory", "bytes", 1000, 1040).verdict == "cannot tell"
    assert plain_line("peak_memory", "bytes", 1000, 1100).verdict == "worse"
    assert plain_line("peak_memory", "bytes", 1000, 1100, noise=0.06).verdict == "cannot tell"
    assert (
        plain_line("load", "ms", 10, 4).verdict == "better"
        and plain_line("load", "ms", 10, 14).verdict == "cannot tell"
    )


def test_ratios_of_tails_are_of_all_samples():
    base = [[100] * 99 + [1000 + i] for i in range(10)]
    head = [[50] * 99 + [500 + i] for i in range(10)]
    assert ratio("p50", base, head) == paired_speedup(base, head)
    for statistic in ("p90", "mean", "p99"):
        found = ratio(statistic, base, head)
        assert found is not None and found.low <= found.value <= found.high
        assert found.value == pytest.approx(2.0, rel=0.02)
    assert ratio("p99", [[1] * 60] * 10, head) is None and ratio("p90", [[1] * 6] * 10, head) is None
    few = ratio("mean", [[10], [20]], [[10], [10]])
    assert few is not None and (few.low, few.high) == (1.0, 2.0)
    tail = ratio("p90", [[10] * 40, [20] * 40], [[10] * 40, [10] * 40])
    assert tail is not None and (tail.low, tail.high) == (1.0, 2.0)


def test_what_makes_two_machines():
    def of(**changed):
        same = {
            "architecture": "x86_64",
            "cpu": "A",
            "flags": ["avx", "avx512_vnni"],
            "cores": 2,
            "memory_bytes": 1,
        }
        return {"machine": same | changed, "libraries": {"onnxruntime": "1.24", "torch": "2.10"}}

    assert differences(of(), of(memory_bytes=2)) == []
    assert differences(of(), of(cores=4)) == ["cores: 2 against 4"]
    assert differences(of(), of(flags=["avx"])) == ["instructions: with avx512_vnni against without"]
    assert differences(of(), of(governor="powersave")) == ["frequency policy: unknown against powersave"]
    assert differences({}, of()) == ["a report does not say on which machine it was measured"]
    newer = of() | {"libraries": {"onnxruntime": "1.25", "torch": "2.11"}}
    assert versions_apart(of(), newer, ("onnxruntime",)) == ["onnxruntime 1.24 against 1.25"]
    assert versions_apart(of(), newer, ("openvino",)) == []
