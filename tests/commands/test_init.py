"""``deploycompress init`` writes a pipeline that is right, and never over anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deploycompress.config.reader import read


def init(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploycompress", "init", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_what_it_writes_is_valid(tmp_path: Path) -> None:
    done = init(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "wrote pipeline.yaml"
    config = read(tmp_path / "pipeline.yaml")
    assert config.model.build == "deploycompress.examples.resnet:build" and config.data.source == "digits"
    assert [s.stage for s in config.stages] == [
        "train", "prune", "distill", "export", "quantize", "build_engine", "benchmark",
    ]  # fmt: skip
    assert set(config.gates) == {"accuracy", "latency_p50", "artifact_size"}


def test_every_remark_in_it_that_is_yaml_is_right_too(tmp_path: Path) -> None:
    """The commented-out alternative is taken in; it must read."""
    init(cwd=tmp_path)
    text = (tmp_path / "pipeline.yaml").read_text()
    lines = [
        line.replace("# ", "", 1) if line.startswith(("  # - repeat", "  #   ", "  #     ")) else line
        for line in text.splitlines()
        if not line.startswith(("  - prune", "  - distill"))
    ]
    (tmp_path / "pipeline.yaml").write_text("\n".join(lines))
    ids = [step.id for step in read(tmp_path / "pipeline.yaml").stages]
    assert ids[1:7] == ["prune@1", "distill@1", "prune@2", "distill@2", "prune@3", "distill@3"]


def test_it_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("mine")
    done = init(cwd=tmp_path)
    assert done.returncode == 2
    assert "pipeline.yaml exists already and is left as it is; give another PATH" in done.stderr
    assert (tmp_path / "pipeline.yaml").read_text() == "mine"
    assert init("other/new.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "other" / "new.yaml").is_file()
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    assert init("dangling.yaml", cwd=tmp_path).returncode == 2


def test_a_folder_gets_a_pipeline_yaml_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert init("folder", cwd=tmp_path).returncode == 0
    assert (tmp_path / "folder" / "pipeline.yaml").is_file()
    done = init("folder/pipeline.yaml/x.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
