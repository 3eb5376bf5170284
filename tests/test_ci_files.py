"""The workflows, the action and the GitLab template: their form, their options, and their scripts, which are run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from ruamel.yaml import YAML

from deploycompress.cli import group

Obeyed = Callable[[str], list[tuple[str, dict[str, str], str]]]
ROOT = Path(__file__).resolve().parents[1]
ACTION = ROOT / ".github" / "actions" / "deploycompress" / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATE = ROOT / ".gitlab" / "deploycompress.gitlab-ci.yml"
FILES = [ACTION, *WORKFLOWS, TEMPLATE]
# What a run leaves and is kept; the folders of the steps are large, and of use to the machine alone.
KEPT = {"artifacts", "config.yaml", "log.txt", "report.json", "report.html", "summary.md", "junit.xml"}
KEPT |= {"bencher.json", "github-action-benchmark.json"}
FORKED = ROOT / "benchmarks" / "reliability" / "forked"
SHORTLY = "import short_measurements; from deploycompress.cli import main; main()"
FOR_COMPARE = {
    "compare.md",
    "*-baseline",
    "*-*/*.json",
}  # what another run needs of this one, and what it said


def load(path: Path) -> dict[str, Any]:
    document = YAML(typ="safe", pure=True).load(path)  # YAML 1.2: `on` is a word
    assert isinstance(document, dict)
    return document


def steps(path: Path) -> list[dict[str, Any]]:
    document = load(path)
    if path == ACTION:
        return list(document["runs"]["steps"])
    return [step for job in document["jobs"].values() for step in job["steps"]]


def step(id: str) -> dict[str, Any]:
    (found,) = (s for s in steps(ACTION) if s.get("id") == id)
    return found


def scripts() -> Iterator[tuple[str, str]]:
    """Every shell script, with the file it stands in."""
    for path in (ACTION, *WORKFLOWS):
        yield from ((path.name, s["run"]) for s in steps(path) if "run" in s)
    job = load(TEMPLATE)[".deploycompress"]
    yield TEMPLATE.name, "\n".join([*job["before_script"], *job["script"]])


def options(command: str) -> set[str]:
    found = group.get_command(click.Context(group), command)
    assert found is not None
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}


# ---------------------------------------------------------------- form


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_the_version_beside_it(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        used = re.match(r"\s*(?:- )?uses: (\S+)(.*)", line)
        if used is None or used[1] == "./.github/actions/deploycompress":
            continue
        assert re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40}", used[1]), line
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", used[2]), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_an_end_and_no_twin(path: Path) -> None:
    document = load(path)
    assert document["permissions"] == {"contents": "read"}
    assert document["concurrency"]["group"]
    for job in document["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 120 and "permissions" not in job
    for checkout in (s for s in steps(path) if s.get("uses", "").startswith("actions/checkout@")):
        assert checkout["with"]["persist-credentials"] is False


def test_ci_runs_what_decides_whether_a_change_lands() -> None:
    document = load(ROOT / ".github" / "workflows" / "ci.yml")
    assert set(document["on"]) >= {"push", "pull_request"}
    assert ".ci/run" in [s.get("run") for s in document["jobs"]["test"]["steps"]]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(("name", "script"), scripts())
def test_a_script_is_bash_and_takes_nothing_from_an_expression(name: str, script: str) -> None:
    assert "${{" not in script, (
        "an input is a variable of the environment: as part of a script it could be code"
    )
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_scripts_give_deploycompress_options_that_it_has() -> None:
    calls = []
    for _, script in scripts():
        lines = script.replace("\\\n", " ").splitlines()
        for line in lines:
            call = re.search(
                r'(?:deploycompress|command)"?\s+(run|validate|compare)\b(.*)', line, re.IGNORECASE
            )
            if call is not None:
                listed = "options" if call[1] == "compare" else "arguments"  # in an array of that name
                parts = [call[2], *(other for other in lines if re.search(rf"\b{listed}\+?=", other))]
                calls.append((call[1], set(re.findall(r"(?<=[ (])--[a-z][\w-]*", " ".join(parts)))))
    for command, given in calls:
        assert given <= options(command)
    assert ("run", {"--out", "--set", "--no-rehearsal"}) in calls, "those of the action"
    assert len(calls) == 5 and [command for command, _ in calls].count("compare") == 2


# ---------------------------------------------------------------- the action


def test_the_inputs_are_options_of_run_or_of_the_job_around_it() -> None:
    document = load(ACTION)
    around = {"working-directory", "python-version", "extras", "requirements", "cache-store", "artifact-name"}
    around |= {"compare-with", "compare-fail-on"}
    given = set(document["inputs"]) - around
    assert given == {"pipeline"} | {name.removeprefix("--") for name in ("--set", "--out", "--no-rehearsal")}
    assert given - {"pipeline"} <= {name.removeprefix("--") for name in options("run")}
    used = set(re.findall(r"inputs\.([\w-]+)", ACTION.read_text(encoding="utf-8")))
    assert used == set(document["inputs"]), "an input that does nothing, or one that does not exist"
    for name, of in document["inputs"].items():
        assert of["description"] and (of.get("required") is True) == (name == "pipeline")
        assert "default" in of or of.get("required")


def test_outputs_of_steps_exist() -> None:
    text = ACTION.read_text(encoding="utf-8")
    for id, output in set(re.findall(r"steps\.([\w-]+)\.outputs\.([\w-]+)", text)):
        if id in ("python", "pip"):  # setup-python's and cache's own
            assert output in ("python-path", "python-version", "cache-hit")
        else:
            assert f'echo "{output}=' in step(id)["run"]


def test_report_and_artefacts_are_uploaded_also_when_the_run_failed() -> None:
    (upload,) = (s for s in steps(ACTION) if s.get("uses", "").startswith("actions/upload-artifact@"))
    assert upload["if"].startswith("always()")
    paths = upload["with"]["path"].split("\n")
    assert {
        path.partition("run-directory }}/")[2].rstrip("/") for path in paths if path
    } == KEPT | FOR_COMPARE


def run_step(id: str, folder: Path, **environment: str) -> tuple[int, str, dict[str, str]]:
    """Run one script of the action as the runner does: exit code, what it printed, its outputs."""
    output = folder / "output.txt"
    output.write_text("")
    for name in step(id).get("env", {}):
        assert name in environment, f"{name} is not given"
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(id)["run"]],
        env={**os.environ, "GITHUB_OUTPUT": str(output), "GITHUB_ACTIONS": "true", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return ended.returncode, ended.stdout + ended.stderr, outputs


@pytest.fixture
def executable(tmp_path: Path) -> str:
    """The command of this checkout, as one file."""
    path = tmp_path / "deploycompress"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deploycompress "$@"\n')
    path.chmod(0o755)
    return str(path)


def inputs(executable: str, tmp_path: Path, **changes: str) -> dict[str, str]:
    given = {"DEPLOYCOMPRESS": executable, "DEPLOYCOMPRESS_STORE": str(tmp_path / "store"), "OUT": "out"}
    return given | {"PIPELINE": "pipeline.yaml", "OVERRIDES": "", "NO_REHEARSAL": "false"} | changes


def test_the_action_passes_the_overrides_and_the_exit_code(
    tiny: Path, executable: str, tmp_path: Path
) -> None:
    overrides = "train.epochs=1 \n\nseed=$(touch injected)\n"
    environment = inputs(executable, tmp_path, OVERRIDES=overrides, OUT="a folder")
    code, printed, outputs = run_step("run", tiny.parent, **environment)
    assert code == 2 and outputs["exit-code"] == "2" and "made" not in outputs, printed
    assert outputs["run-directory"] == str(tiny.parent / "a folder")
    assert "--set seed=$(touch injected): received '$(touch injected)'" in printed, "word for word"
    assert "::error title=Configuration::" in printed
    assert not (tiny.parent / "injected").exists()


def test_the_action_runs_a_pipeline_and_annotates_the_gate_that_fails(
    tiny: Path, executable: str, tmp_path: Path, obeyed: Obeyed
) -> None:
    """A whole run as in a job. Its other gate holds."""
    tiny.write_text(tiny.read_text() + "  accuracy: {min: 99.99%}\n")
    summary = tmp_path / "summary.md"
    environment = inputs(executable, tmp_path, NO_REHEARSAL="true", GITHUB_STEP_SUMMARY=str(summary))
    code, printed, outputs = run_step("run", tiny.parent, **environment)
    assert code == 5 and outputs["exit-code"] == "5" and outputs["made"] == "true", printed
    ((name, given, message),) = obeyed(printed)
    line = str(len(tiny.read_text().splitlines()))
    place = {"file": str(tiny), "line": line, "col": "3"}
    assert (name, given) == ("error", place | {"title": "tiny: accuracy failed"})
    assert "wanted ≥ 99.99 %" in message
    run_dir = Path(outputs["run-directory"])
    left = {path.name for path in run_dir.iterdir()}
    assert left >= KEPT - {"artifacts"}, "which is there where something is faster than the baseline"
    assert summary.read_text("utf-8") == (run_dir / "summary.md").read_text("utf-8") + "\n"
    assert "tiny: best" in (run_dir / "bencher.json").read_text("utf-8")


def test_the_action_compares_with_what_another_run_of_it_kept(
    tiny: Path, command: Any, executable: str, tmp_path: Path
) -> None:
    """Nothing else of the run's directory is there."""
    code, said = command("run", tiny, "--out", tmp_path / "whole", "--no-rehearsal", cwd=tmp_path)
    assert code == 0, said
    base, head, summary = tmp_path / "base", tmp_path / "head", tmp_path / "summary.md"
    for found in (found for pattern in KEPT | FOR_COMPARE for found in (tmp_path / "whole").glob(pattern)):
        place = base / found.relative_to(tmp_path / "whole")
        place.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, place, dirs_exist_ok=True)
        else:
            shutil.copy(found, place)
    shutil.copytree(base, head)
    shortly = Path(executable).read_text().replace("-m deploycompress", f"-c '{SHORTLY}'")
    Path(executable).write_text(shortly)
    environment = {"DEPLOYCOMPRESS": executable, "HEAD": str(head), "FAIL_ON": "worse"}
    environment |= {"GITHUB_STEP_SUMMARY": str(summary), "PYTHONPATH": str(FORKED), "PIPELINE": str(tiny)}
    code, printed, _ = run_step("compare", tmp_path, **environment, BASE=str(base))
    assert code == 0, printed
    told = summary.read_text("utf-8")
    assert told == (head / "compare.md").read_text("utf-8") and told.startswith("## HEAD is as fast")
    assert "measured now, side by side on one machine" in told and "paired on" in told
    assert "as HEAD's run judged" not in told, "what the gates against the baseline need was kept"
    code, printed, _ = run_step("compare", tmp_path, **environment, BASE=str(tmp_path / "none"))
    assert code == 0 and "nothing to compare with" in printed
    report = json.loads((base / "report.json").read_text())
    report["environment"]["machine"]["cpu"] = "another processor"
    (base / "report.json").write_text(json.dumps(report))
    code, printed, _ = run_step("compare", tmp_path, **environment, BASE=str(base))
    assert code == 0 and "No speed could be compared" in printed
    assert "processor: another processor against" in summary.read_text("utf-8")


def test_the_action_finds_its_own_checkout(tmp_path: Path) -> None:
    environment = {"PYTHON": sys.executable, "PIPELINE": "a.yaml", "RUNNER_TEMP": str(tmp_path)}
    (tmp_path / "own list.txt").write_text("einops\n")
    environment |= {
        "EXTRAS": "vision,text",
        "REQUIREMENTS": "own list.txt",
        "FOLDER": ".",
        "ARTIFACT": "a, b",
    }
    environment["GITHUB_ACTION_PATH"] = str(ACTION.parent)
    code, printed, outputs = run_step("places", tmp_path, **environment)
    assert code == 0, printed
    for name, value, moved in (
        ("ARTIFACT", "c", "pipeline"),
        ("FOLDER", "sub", "pipeline"),
        ("EXTRAS", "vision", "libraries"),
        ("REQUIREMENTS", "", "libraries"),
    ):
        _, _, other = run_step("places", tmp_path, **environment | {name: value})
        assert {key for key in outputs if other[key] != outputs[key]} == {moved}
    assert Path(outputs["root"]) == ROOT
    assert Path(outputs["pip"]).is_absolute() and Path(outputs["store"]).is_dir()
    for name in ("libraries", "pipeline"):  # of keys of caches, in which no comma may stand
        assert re.fullmatch("[0-9a-f]{16}", outputs[name])
    keys = re.findall(r"^ *key: (.*)$", ACTION.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == 4
    free = {f"inputs.{name}" for name in load(ACTION)["inputs"]}  # what may hold anything
    assert not free & set(re.findall(r"\$\{\{ (\S+) \}\}", " ".join(keys)))


@pytest.mark.parametrize(
    ("extras", "requirements", "wanted"),
    [("", "", ["ROOT"]), ("vision,text", "own list.txt", ["ROOT[vision,text]", "-r", "own list.txt"])],
)
def test_the_action_installs_its_own_checkout_with_the_constraints(
    tmp_path: Path, extras: str, requirements: str, wanted: list[str]
) -> None:
    """With an interpreter in Python's place that writes down what it is asked for: nothing is downloaded."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"\nprintf "#!/bin/sh\\nfor word; do echo \\"\\$word\\" >> $LOG; done\\n" > "$3/bin/pip"\n'
        'chmod +x "$3/bin/pip"\n'
    )
    python.chmod(0o755)
    environment = {
        "PYTHON": str(python),
        "ROOT": "ROOT",
        "ENVIRONMENT": str(tmp_path / "env"),
        "LOG": str(log),
    }
    environment |= {"EXTRAS": extras, "REQUIREMENTS": requirements}
    code, printed, _ = run_step("install", tmp_path, **environment)
    assert code == 0, printed
    assert log.read_text().splitlines() == ["install", "-c", "ROOT/constraints.txt", *wanted]


# ---------------------------------------------------------------- GitLab


def job() -> Mapping[str, Any]:
    document = load(TEMPLATE)
    assert list(document) == [".deploycompress"], "a hidden job, which runs only where it is extended"
    found: Mapping[str, Any] = document[".deploycompress"]
    return found


def test_the_gitlab_job_keeps_what_the_action_keeps_and_shows_the_gates() -> None:
    artifacts = job()["artifacts"]
    assert artifacts["when"] == "always"
    assert {
        path.removeprefix("deploycompress-run/").rstrip("/") for path in artifacts["paths"]
    } == KEPT | FOR_COMPARE
    assert artifacts["reports"] == {"junit": "deploycompress-run/junit.xml"}
    folders = [job()["variables"][name] for name in ("DEPLOYCOMPRESS_STORE", "PIP_CACHE_DIR")]
    (cached,) = job()["cache"]["paths"]
    assert all(folder.startswith(f"$CI_PROJECT_DIR/{cached}") for folder in folders)


def test_every_variable_of_the_gitlab_job_is_read() -> None:
    text = "\n".join([*job()["before_script"], *job()["script"]])
    read = set(re.findall(r"\$\{?([A-Z_]+)", text))
    environment = {"DEPLOYCOMPRESS_STORE", "PIP_CACHE_DIR"}  # read by the programs themselves
    assert read | environment == set(job()["variables"])


def gitlab(script: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The lines of a job as GitLab's runner joins them: the first that fails ends it."""
    given = {name: str(value) for name, value in job()["variables"].items() if "$" not in str(value)}
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", "\n".join(script)],
        env={**os.environ, **given, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_gitlab_job_passes_the_options_and_the_exit_code(tiny: Path, executable: str) -> None:
    (line,) = job()["script"]
    assert " --out deploycompress-run " in line
    script = [f"command={executable!r}", line]
    options = "--no-rehearsal --set seed=x --set train.epochs=1"
    ended = gitlab(script, tiny.parent, DEPLOYCOMPRESS_OPTIONS=options)
    assert ended.returncode == 2 and "--set seed=x: received 'x'" in ended.stderr
    assert "::" not in ended.stdout + ended.stderr, "GitLab knows no workflow commands"
    ended = gitlab(script, tiny.parent, DEPLOYCOMPRESS_PIPELINE="none.yml")
    assert ended.returncode == 2 and "none.yml does not exist" in ended.stderr


def test_the_gitlab_job_compares_where_it_is_told_with_what(tmp_path: Path) -> None:
    """With a script in the command's place, which says what it was asked for."""
    (line,) = job()["script"]
    kept = tmp_path / "base"
    kept.mkdir()
    (kept / "report.json").write_text("{}")
    asked = tmp_path / "asked"
    told = tmp_path / "deploycompress"
    told.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\n[ "$1" = run ] && exit $CODE\n[ "$1" = cache ] && exit 3\n'
        '[ -n "$TABLE" ] && echo "a table" > deploycompress-run/compare.md\nexit $COMPARED\n'
    )
    told.chmod(0o755)
    (tmp_path / "deploycompress-run").mkdir()
    for code, base, wanted, calls in (
        ("0", str(kept), 5, ["run", "compare"]),
        ("5", str(kept), 5, ["run", "compare"]),
        ("4", str(kept), 4, ["run"]),
        ("0", "", 0, ["run"]),
        ("0", str(tmp_path / "none"), 0, ["run"]),
        ("3", str(kept), 3, ["run"]),
    ):
        asked.write_text("")
        given = {"CODE": code, "COMPARED": "5", "TABLE": "yes", "DEPLOYCOMPRESS_COMPARE_WITH": base}
        ended = gitlab([f"command={told}", line], tmp_path, **given)
        assert ended.returncode == wanted, ended.stderr
        assert [words.split()[0] for words in asked.read_text().splitlines()] == [*calls, "cache"]
        if "compare" in calls:
            assert (
                f"-- {base} deploycompress-run" in asked.read_text()
                and "--fail-on never" in asked.read_text()
                and "a table" in ended.stdout
            )


@pytest.mark.parametrize(
    ("compared", "table", "fail_on", "wanted"),
    [
        ("3", "yes", "worse", 0),  # another machine's run: the table says so
        ("3", "", "worse", 3),  # a board that is away: nothing was compared
        ("3", "", "never", 0),
        ("2", "", "never", 0),  # a run of another version, or without a file that can be measured
        ("2", "", "gate", 2),
        ("5", "yes", "worse", 5),
    ],
)
def test_a_comparison_that_is_not_to_decide_never_does(
    tmp_path: Path, compared: str, table: str, fail_on: str, wanted: int
) -> None:
    """On GitHub and on GitLab, with a script in the command's place."""
    told, head, base = (tmp_path / name for name in ("deploycompress", "deploycompress-run", "base"))
    head.mkdir()
    base.mkdir()
    (base / "report.json").write_text("{}")
    (head / "compare.md").write_text("an old one")
    told.write_text(
        '#!/bin/sh\n[ "$1" = compare ] || exit 0\n'
        f'[ -n "{table}" ] && echo "a table" > {head}/compare.md\nexit {compared}\n'
    )
    told.chmod(0o755)
    given = {"DEPLOYCOMPRESS": str(told), "PIPELINE": "a.yaml", "BASE": str(base), "HEAD": str(head)}
    summary = tmp_path / "summary.md"
    summary.write_text("")
    code, printed, _ = run_step(
        "compare", tmp_path, **given, FAIL_ON=fail_on, GITHUB_STEP_SUMMARY=str(summary)
    )
    assert code == wanted, printed
    assert summary.read_text() == ("a table\n" if table else "")
    variables = {"DEPLOYCOMPRESS_COMPARE_WITH": str(base), "DEPLOYCOMPRESS_COMPARE_FAIL_ON": fail_on}
    ended = gitlab([f"command={told}", *job()["script"]], tmp_path, **variables)
    assert ended.returncode == wanted, ended.stderr
    assert "an old one" not in printed + ended.stdout


CANCELLED = {ACTION: "GitHub", TEMPLATE: "GitLab"}


@pytest.mark.parametrize("path", CANCELLED, ids=CANCELLED.values())
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_job_that_is_cancelled_lets_the_run_end_in_its_own_way(
    tmp_path: Path, path: Path, number: signal.Signals
) -> None:
    """Its shell alone gets the signal, at once: it may not know the number of the run's process yet."""
    told, output = tmp_path / "deploycompress", tmp_path / "output.txt"
    told.write_text(
        "#!/bin/bash\ntrap 'sleep 0.5; echo kept; exit 143' TERM\n[ \"$1\" = run ] || exit 0\n"
        f'kill -{number} "$PPID"\nwhile true; do sleep 0.1; done\n'
    )
    told.chmod(0o755)
    variables = {
        "DEPLOYCOMPRESS": str(told),
        "DEPLOYCOMPRESS_STORE": str(tmp_path / "store"),
        "command": str(told),
    }
    variables |= {
        "OUT": "out",
        "PIPELINE": "a.yaml",
        "OVERRIDES": "",
        "NO_REHEARSAL": "",
        "GITHUB_OUTPUT": str(output),
    }
    variables |= {
        "DEPLOYCOMPRESS_OPTIONS": "",
        "DEPLOYCOMPRESS_PIPELINE": "a.yaml",
        "DEPLOYCOMPRESS_COMPARE_WITH": "",
    }
    script = step("run")["run"] if path == ACTION else "\n".join(job()["script"])
    shell = subprocess.Popen(
        ["bash", "-eo", "pipefail", "-c", script],
        env=os.environ | variables, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
        # A runner's shell heeds it; one of a job in the background would not, and could not be told to.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert shell.wait(20) == 143 and shell.stdout is not None and shell.stdout.read() == "kept\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()
    if path == ACTION:
        assert "exit-code=143" in output.read_text()


def test_the_gitlab_job_says_what_it_needs(tmp_path: Path) -> None:
    ended = gitlab(job()["before_script"][:1], tmp_path)
    assert ended.returncode == 3 and "set DEPLOYCOMPRESS_REPOSITORY and DEPLOYCOMPRESS_REF" in ended.stderr
    assert gitlab(
        job()["before_script"][:1], tmp_path, DEPLOYCOMPRESS_REPOSITORY="x", DEPLOYCOMPRESS_REF="y"
    ).returncode == 0  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_gitlab_job_fetches_a_tag_or_a_commit(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(tmp_path / "source")]
    (tmp_path / "source").mkdir()
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    subprocess.run([*git, "config", "uploadpack.allowAnySHA1InWant", "true"], check=True)  # as hosts have it
    for reference in ("v1", commit.strip()):
        variables = {
            "DEPLOYCOMPRESS_REPOSITORY": (tmp_path / "source").as_uri(),
            "DEPLOYCOMPRESS_REF": reference,
        }
        script = [*job()["before_script"][1:3], 'git -C "$tools/source" rev-parse HEAD; rm -r "$tools"']
        ended = gitlab(script, tmp_path, **variables)
        assert ended.returncode == 0 and ended.stdout == commit, ended.stderr
