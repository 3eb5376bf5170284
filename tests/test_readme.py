"""What the README tells people to type is what is run, here and in CI."""

from __future__ import annotations

import re
from pathlib import Path

from deploycompress.cli import COMMANDS
from deploycompress.config.device_file import read_devices
from deploycompress.config.reader import read
from deploycompress.registry import load_reference

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_readmes_test_command():
    commands = [
        line for _, block in BLOCKS for line in block.splitlines() if line.startswith("python3 -m venv")
    ]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_first_command_runs_a_pipeline_that_the_tests_run():
    command = next(line for _, block in BLOCKS for line in block.splitlines() if "deploycompress run" in line)
    pipeline = command.rsplit(" ", 1)[1]
    assert (ROOT / pipeline).is_file() and Path(pipeline).parent == Path("pipelines")


def test_the_pipeline_it_explains_is_the_quickstart(tmp_path):
    shown = next(block for language, block in BLOCKS if language == "yaml")
    (tmp_path / "pipeline.yaml").write_text(shown)
    assert read(tmp_path / "pipeline.yaml") == read(ROOT / "pipelines" / "quickstart.yaml")


def test_its_devices_are_read(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "board").touch()
    shown = next(block for language, block in BLOCKS if language == "yaml" and "ssh:" in block)
    (tmp_path / "devices.yaml").write_text(shown)
    devices, problems = read_devices(tmp_path / "devices.yaml")
    assert problems == [] and list(devices) == ["board", "phone"]


def test_every_command_is_in_its_table():
    rows = re.findall(r"^\| `(\w+)", README, re.MULTILINE)
    assert set(COMMANDS) <= set(rows)


def test_the_examples_of_what_can_be_added_are_of_their_kind():
    code = "\n".join(block for language, block in BLOCKS if language == "python")
    compile(code, "README.md", "exec")
    for word in ("comparable", "needs_data", "accepts", "missing", "produces", "ensures"):
        assert word in code
    load_reference("deploycompress.contracts:Stage")


def test_the_constraints_name_no_place():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "@" not in text and "--" not in text
