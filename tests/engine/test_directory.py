"""Which folders a run may write to, and which it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploycompress.engine import directory
from deploycompress.errors import ConfigError
from deploycompress.user_code import NO_USER_CODE


@pytest.mark.parametrize("name", ["01-photos", "config.yaml", "devices.yaml", "artifacts"])
def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(
        ConfigError, match=f"is no run directory, and holds {name}, which a run would replace"
    ):
        directory.own(tmp_path, "x")


def test_what_a_run_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert directory.own(None, "x") == tmp_path / "runs" / "x"
    out = tmp_path / "out"
    out.mkdir()
    (out / "ci.log").touch()  # `| tee out/ci.log`
    assert directory.own(Path("out"), "x") == out
    for mark in directory.MARKS:
        ours = tmp_path / mark.strip(".")
        (ours / "01-train").mkdir(parents=True)
        (ours / mark).touch()
        assert directory.own(ours, "x") == ours
    linked = tmp_path / "scratch"
    linked.symlink_to(out)
    assert directory.own(linked, "x") == linked  # as the user has arranged it


def test_a_marked_folder_is_a_runs(tmp_path: Path) -> None:
    directory.mark(tmp_path / "trial")
    (tmp_path / "trial" / "devices.yaml").touch()
    assert directory.own(tmp_path / "trial", "x") == tmp_path / "trial"


@pytest.mark.parametrize("place", ["runs", "runs/pr", "runs/pr/.jobs", "runs/pr/01-train/model"])
def test_links_are_refused_where_user_code_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """They may come with the pipeline, and lead to anything the user can write to."""
    monkeypatch.chdir(tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    link = tmp_path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    if place.startswith("runs/pr/"):
        directory.mark(tmp_path / "runs" / "pr")
    link.symlink_to(victim)
    assert directory.own(None, "pr") == tmp_path / "runs" / "pr"
    monkeypatch.setenv(NO_USER_CODE, "1")
    with pytest.raises(ConfigError, match=r"is a link to .*victim: nothing is written through links"):
        directory.own(None, "pr")
