"""``cache``: what is damaged is found, what is of no use goes, what made a step run again is named."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploycompress.artifact import Artifact, digest_json, publish, write_json
from deploycompress.cli import group
from deploycompress.engine.locks import lock
from deploycompress.engine.store import FileStore, seal
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed

KEY = {
    "stage": "prune",
    "config": {"target": {"macs": "60%"}, "align": 8},
    "seed": 1,
    "digests": {"code": "a" * 64},
}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["cache", *map(str, arguments)])


def put(store: FileStore, key: dict = KEY) -> Path:
    with store.workdir() as workdir:
        (workdir / "model.onnx").write_bytes(b"network" + digest_json(key).encode())
        artifact = Artifact.of("", "onnx", workdir / "model.onnx")
        record = {"key": key, "artifacts": [artifact.to_json(workdir)], "files": [], "metrics": {}}
        write_json(workdir / "manifest.json", record | {"seal": seal(record)})
        publish(workdir, store.step(key))
    return store.step(key)


@pytest.fixture
def store(own_store: Path) -> FileStore:
    return FileStore(own_store)


def test_verify_finds_what_is_damaged_and_sets_it_aside(store):
    good, bad = put(store), put(store, KEY | {"seed": 2})
    store.folder("tables", {"x": 1}, lambda folder: (folder / "table.json").write_text("{}"))
    store.learn({"rehearsal": 1})
    assert "all 4 results" in call("verify").output
    (bad / "model.onnx").write_bytes(b"x")
    done = call("verify")
    assert isinstance(done.exception, StageFailed) and "1 of 4 results" in str(done.exception)
    assert f"{bad.name}: model.onnx has 1 bytes, expected" in done.output
    assert good.exists() and not bad.exists() and len(list((store.root / "quarantine").iterdir())) == 1
    assert "all 3 results" in call("verify").output


@pytest.mark.parametrize("kind", ["folder", "fact"])
def test_other_things_that_are_kept_are_checked_when_they_are_read(own_store, kind):
    said: list[str] = []
    store, made = FileStore(own_store, said.append), []

    def make(folder: Path) -> None:
        made.append(1)
        (folder / "table.json").write_text('{"unit": "ms"}')

    if kind == "folder":
        place = store.folder("tables", {"x": 1}, make)
        (place / "table.json").write_text('{"unit": "s!"}')
        assert (store.folder("tables", {"x": 1}, make) / "table.json").read_text() == '{"unit": "ms"}'
        assert len(made) == 2 and "table.json has other contents than recorded" in said[0]
    else:
        store.learn({"rehearsal": 1})
        place = next(own_store.glob("facts/*/*"))
        place.write_text("{}")
        assert not store.knows({"rehearsal": 1}) and "of another fact" in said[0]
        store.learn({"rehearsal": 1})
        assert store.knows({"rehearsal": 1}) and len(said) == 1


def test_gc_takes_what_is_of_no_use_and_nothing_else(store):
    used, old, damaged = put(store), put(store, KEY | {"seed": 2}), put(store, KEY | {"seed": 3})
    store.set_aside(damaged)
    long_ago = time.time() - 40 * 86_400
    os.utime(old, (long_ago, long_ago))
    left = store.root / "facts" / f".fact.{'0' * 32}"
    left.parent.mkdir()
    left.write_text("half")
    going_on = store.checkpoints("c" * 64)
    dry = call("gc", "--dry-run")
    assert "3 things" in dry.output and "would go" in dry.output and old.exists() and left.exists()
    done = call("gc")
    assert all(
        reason in done.output for reason in ("was damaged", "not used for long", "run that was killed")
    )
    assert used.exists() and going_on.exists() and not old.exists() and not left.exists()
    assert not list((store.root / "quarantine").iterdir())
    assert "0 things" in call("gc").output
    assert store.find(KEY, pytest.fail) == used
    os.utime(used, (long_ago, long_ago))
    assert store.find(KEY, pytest.fail) == used  # which is a use
    assert "0 things" in call("gc", "--older-than", "12 h").output


def test_gc_waits_for_runs_and_then_says_so(store, monkeypatch):
    monkeypatch.setattr("deploycompress.commands.cache.WAIT_S", 0.1)
    put(store)
    with store.used():
        assert isinstance(call("gc").exception, EnvironmentMissing)
        with lock(store.root / "locks" / "store.lock", wait_s=0, shared=True):
            pass  # another run may begin meanwhile
    assert call("gc").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gc", "--older-than", "soon"), "received 'soon', expected a time such as 30 d"),
        (("verify", "--store", "nowhere"), "there is no store at"),
        (("explain", "prune"), "there is no run in runs/ here"),
        (("explain", "prune", "--run", "nowhere"), "is no run directory that can be read"),
    ],
)
def test_mistakes(store, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    put(store)
    done = call(*arguments)
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)


# ---------------------------------------------------------------- explain


def run_dir(folder: Path, *, reused: bool = False, why: dict | None = None) -> Path:
    """What a run leaves that ``explain`` reads; whole runs are in tests/engine/test_pipeline.py."""
    record = {"id": "prune", "reused": reused, "state": "done"}
    write_json(folder / "run.json", {"steps": [record]})
    if why is not None:
        write_json(folder / ".jobs" / "prune.why.json", why)
    return folder


def test_explain_names_the_field_with_its_old_and_new_value(store, tmp_path):
    before = json.loads(json.dumps(KEY))
    before["config"]["target"]["macs"], before["digests"]["code"] = "50%", "b" * 64
    folder = run_dir(tmp_path / "run", why={"before": before, "key": KEY, "damage": []})
    lines = call("explain", "prune", "--run", folder).output.splitlines()
    assert lines[0].endswith("its key is another than in the run before in this directory")
    assert lines[1:] == ["  config.target.macs: 50% -> 60%", f"  digests.code: {'b' * 12} -> {'a' * 12}"]


def test_explain_compares_with_the_nearest_of_the_store_where_this_directory_has_none(store, tmp_path):
    put(store, KEY | {"seed": 2, "config": {}})
    put(store, KEY | {"seed": 3})
    put(store, {"stage": "train"})
    folder = run_dir(tmp_path / "run", why={"before": None, "key": KEY, "damage": []})
    lines = call("explain", "prune", "--run", folder).output.splitlines()
    assert "most similar step in the store" in lines[0] and lines[1:] == ["  seed: 3 -> 1"]


@pytest.mark.parametrize(
    ("reused", "why", "message"),
    [
        (True, None, "its result was reused"),
        (False, None, "it is made in every run"),
        (False, {"before": KEY, "key": KEY, "damage": ["model.onnx is missing"]}, "damaged and set aside: model.onnx is"),
        (False, {"before": KEY, "key": KEY, "damage": []}, "the store did not hold its result"),
        (False, {"before": None, "key": KEY, "damage": []}, "no earlier result of this stage"),
    ],
)  # fmt: skip
def test_explain_where_the_key_is_not_the_reason(store, tmp_path, reused, why, message):
    done = call("explain", "prune", "--run", run_dir(tmp_path / "run", reused=reused, why=why))
    assert message in done.output
    wrong = call("explain", "prun", "--run", tmp_path / "run")
    assert isinstance(wrong.exception, ConfigError) and "did you mean 'prune'" in str(wrong.exception)
