"""``benchmark`` and ``compare`` on a device that is declared, behind a real sshd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from device_lab import Sshd

from deploycompress.cli import main
from deploycompress.config.device_file import dump_devices
from deploycompress.measure.plan import MODES, Plan

Make = Callable[[str, int], Path]


@pytest.fixture
def declared(board: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """(what more there is to say of it) -> a file that declares ``board``; measurements are short."""
    monkeypatch.setitem(MODES, "quick", Plan(6, 10.0, 10.0, 64, 200))
    monkeypatch.chdir(tmp_path)

    def write(**more: object) -> Path:
        place = tmp_path / "boards.yaml"
        place.write_text(dump_devices({"board": board.config(**more)}))
        return place

    return write


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(str(ended.value.code)), said.out, " ".join(said.err.replace("│", " ").split())


@pytest.mark.quiet
def test_files_are_measured_there(declared, made: Make, tmp_path: Path, capsys) -> None:
    one, many, file = made("one", 1), made("many", 40), tmp_path / "found.json"
    there = ("--device", "board", "--devices", declared())
    code, out, err = run(capsys, "benchmark", one, many, *there, "--json", file)
    assert code == 0 and out.startswith("board: "), err
    found = json.loads(file.read_text())
    assert found["device"] == "board" and found["facts"]["python"].startswith("3.")
    (setting,) = found["settings"]
    assert [row["verdict"] for row in setting["rows"]] == [None, "slower"]
    code, out, err = run(capsys, "compare", one, many, *there, "--fail-on", "worse")
    assert code == 5 and "HEAD is slower" in out, err


def test_the_file_beside_which_the_command_stands_is_the_default(
    declared, made: Make, tmp_path: Path, capsys
) -> None:
    one = made("one", 1)
    code, _, err = run(capsys, "benchmark", one, "--device", "board")
    assert code == 2 and "unknown device 'board'" in err
    declared().rename(tmp_path / "devices.yaml")
    code, out, err = run(capsys, "benchmark", one, "--device", "board")
    assert code == 0 and out.startswith("board: "), err


def test_an_emulated_board_is_neither_faster_nor_slower(declared, made: Make, capsys) -> None:
    there = ("--device", "board", "--devices", declared(emulated=True))
    code, out, err = run(capsys, "benchmark", made("one", 1), made("many", 40), *there)
    assert code == 0 and "cannot tell" in out and "slower" not in out, err
    assert "the device is emulated" in out
    code, out, _ = run(capsys, "compare", made("one", 1), made("many", 40), *there)
    assert code == 0 and out.startswith("Cannot tell whether HEAD is faster or slower")


def test_a_runtime_that_is_not_there_is_named(declared, made: Make, tmp_path: Path, capsys) -> None:
    there = ("--device", "board", "--devices", declared(), "--runtime", "program")
    code, _, err = run(capsys, "benchmark", made("one", 1), *there)
    assert code == 3 and "the runtime program cannot run on board: " in err
    broken = tmp_path / "broken.yaml"
    broken.write_text("board: {sssh: me@board}\n")
    code, _, err = run(capsys, "benchmark", made("one", 1), "--device", "board", "--devices", broken)
    assert code == 2 and "broken.yaml" in err and "expected one of ssh: ..." in err
