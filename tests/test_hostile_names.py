"""A model whose layers and outputs bear names that mean something to a terminal, a runner, a page or a shell."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.cli import main
from deploycompress.commands.progress import View
from deploycompress.config.devices import SshConfig
from deploycompress.contracts import Event
from deploycompress.devices.link import Done, Link
from deploycompress.engine.record import StepRecord
from deploycompress.errors import EnvironmentMissing, StageFailed

NAMES = (
    "<script>alert(1)</script>",
    "a|b`c`",
    "::error::cut",
    "l\n::error::m\x1b[2Jn\r",
    "\u202egnp\u2066",
    "##[error]x",
    "]]>&amp;\x9b31m\x07",
)
CODE = f"""
from torch import nn

NAMES = {NAMES!r}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 5),
        ]
        for name, layer in zip(NAMES, layers):
            self.add_module(name, layer)

    def forward(self, image):
        for name in NAMES:
            image = getattr(self, name)(image)
        return {{"<img src=x>|`o`\\n::error::out\\x1b[31m": image}}


def build():
    return Net()
"""
STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
Obeyed = Callable[[str], list[Any]]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "hostile.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return tmp_path / "hostile.py"


def test_inspecting_such_a_model_steers_nothing(
    code: Path, capfd: pytest.CaptureFixture[str], obeyed: Obeyed
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", f"{code}:build", "--input", "image=1x3x8x8", "--no-latency", "--limit", "9"])
    shown = capfd.readouterr()
    assert ended.value.code == 0, shown.err
    assert "::error::cut" in shown.out and "]]>&amp;" in shown.out  # the names are there, and mean nothing
    assert obeyed(shown.out) == [] and obeyed(shown.err) == []
    assert not STEERS.search(shown.out + shown.err)


def test_validating_prints_text(code: Path, capfd: pytest.CaptureFixture[str], obeyed: Obeyed) -> None:
    (code.parent / "##[error]x.py").write_text("def build(): ...\n")
    (code.parent / "p.yaml").write_text(
        "name: x\nmodel: {build: '##[error]x.py:build', inputs: {i: {shape: [batch, 1, 8, 8]}}}\n"
        "data: {source: digits}\nstages: [train]\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["validate", "p.yaml"])
    shown = capfd.readouterr()
    assert ended.value.code == 0, shown.err
    assert "##[error]x.py" in shown.out and obeyed(shown.out) == []


def test_an_error_in_such_words_steers_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], obeyed: Obeyed
) -> None:
    from deploycompress import cli

    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    cli._show(StageFailed("; ".join(NAMES)), annotated=True)
    shown = capfd.readouterr()
    assert "<script>" in shown.err and obeyed(shown.err) == [] and obeyed(shown.out) == []
    assert not STEERS.search(shown.err)


def test_what_a_run_says_meanwhile_steers_nothing(tmp_path: Path) -> None:
    lines: list[str] = []

    class Screen:
        def line(self, text: str) -> None:
            lines.append(text)

        def show(self, view: View) -> None:
            if view.now is not None:
                lines.append(view.now[2])

    view = View(Screen(), verbose=True, quiet=False)
    view.planned(tmp_path, [])
    view.names, view.states = {"prune": "03-prune"}, {"03-prune": ("waiting", 0.0)}
    view.started("prune")
    for name in NAMES:
        view.event(Event("warning", f"{name}: left whole", {name: 1.0}, step="prune"))
    error = {"class": "StageFailed", "message": NAMES[3], "exit_code": 4}
    view.finished(StepRecord("prune", "prune", "03-prune", "failed", error=error))
    assert len(lines) > len(NAMES)
    assert not STEERS.search("".join(lines) + (tmp_path / "log.txt").read_text())


@pytest.mark.parametrize(
    "text",
    [
        "x; touch WENT-OFF",
        "$(touch WENT-OFF)",
        "`touch WENT-OFF`",
        "' ; touch WENT-OFF ; '",
        "~/$(touch WENT-OFF)",
    ],
)
def test_what_a_device_is_configured_with_is_data_to_its_shell(tmp_path: Path, text: str) -> None:
    """The line that goes to a device, given to a real shell."""

    class Shell:
        def run(self, command: str, data: bytes, timeout_s: float, most: int) -> Done:
            done = subprocess.run(
                ["sh", "-c", command], input=data, capture_output=True, cwd=tmp_path, timeout=20
            )
            return Done(done.returncode, done.stdout, done.stderr.decode())

        def explain(self, *told: Any) -> str | None:
            return "not there"

        reason = explain

    config = SshConfig(ssh="board", python=text, folder=text, patience="1 s")
    link = Link("board", config, text, Shell())  # type: ignore[arg-type]
    with pytest.raises(EnvironmentMissing):
        link.ask("facts")
    assert not (tmp_path / "WENT-OFF").exists()
