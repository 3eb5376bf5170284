"""``deploycompress validate`` through a real process: what it prints, its exit code, how long it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def deploycompress(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploycompress", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_one_line_a_step_and_ok(tiny: Path) -> None:
    done = deploycompress("validate", "pipeline.yaml", cwd=tiny.parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["model", f"{tiny.parent / 'model.py'}:build"]
    assert [line.split()[0] for line in lines[1:-1]] == [
        "train", "prune", "distill", "export", "quantize", "benchmark",
    ]  # fmt: skip
    assert lines[2].split() == ["prune", "train", "->", "checkpoint"]
    assert lines[-1] == "ok: 6 steps, 1 gate"


def test_all_mistakes_and_exit_code_2(tiny: Path) -> None:
    text = tiny.read_text().replace("epochs: 1,", "epoch: 1,").replace("model.py:build", "modle.py:build")
    tiny.write_text(text)
    done = deploycompress("validate", "pipeline.yaml", "--set", "prune.target.macs=60", cwd=tiny.parent)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert (
        "pipeline.yaml:4:10: model.build: 'modle.py:build': the file modle.py does not exist; did you mean"
        in lines[0]
    )
    assert (
        "pipeline.yaml:10:13: stages.0.train.epoch: unknown key 'epoch'; did you mean 'epochs'?" in lines[1]
    )
    assert (
        "pipeline.yaml:12:15: stages.2.distill.epoch: unknown key 'epoch'; did you mean 'epochs'?" in lines[2]
    )


def test_set_is_checked_too(tiny: Path) -> None:
    assert (
        deploycompress(
            "validate", "pipeline.yaml", "--set", "prune.target.macs=30%", cwd=tiny.parent
        ).returncode
        == 0
    )
    done = deploycompress("validate", "pipeline.yaml", "--set", "prune.target.macs=30 ms", cwd=tiny.parent)
    assert done.returncode == 2
    assert "--set prune.target.macs=30 ms: received '30 ms'" in done.stderr


def test_user_code_is_not_run(tiny: Path) -> None:
    (tiny.parent / "model.py").write_text("raise SystemExit('ran')\ndef build(): ...\n")
    assert deploycompress("validate", "pipeline.yaml", cwd=tiny.parent).returncode == 0
