"""The store: what was published is found, what was damaged is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from deploycompress.artifact import Artifact, publish, write_json
from deploycompress.engine.locks import held, lock
from deploycompress.engine.store import FileStore, seal
from deploycompress.errors import EnvironmentMissing

KEY = {"stage": "train", "config": {"epochs": 3}}


def put(store: FileStore, key: dict = KEY, contents: bytes = b"weights") -> Path:
    with store.workdir() as workdir:
        (workdir / "model").mkdir()
        (workdir / "model" / "model.safetensors").write_bytes(contents)
        artifact = Artifact.of("train", "checkpoint", workdir / "model")
        manifest = {"key": key, "artifacts": [artifact.to_json(workdir)], "metrics": {"loss": 0.5}}
        write_json(workdir / "manifest.json", manifest | {"seal": seal(manifest)})
        publish(workdir, store.step(key))
    return store.step(key)


def test_a_published_step_is_found_by_its_key_and_by_no_other(tmp_path):
    store = FileStore(tmp_path)
    assert store.find(KEY, pytest.fail) is None
    folder = put(store)
    assert store.find(KEY, pytest.fail) == folder
    assert store.find(KEY | {"config": {"epochs": 4}}, pytest.fail) is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_metric(path: Path) -> None:
    record = json.loads(path.read_text())
    record["metrics"]["loss"] = 0.1
    path.write_text(json.dumps(record))


DAMAGES = {
    "flipped bit": ("model/model.safetensors", flip, "other contents"),
    "truncated": (
        "model/model.safetensors",
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        "6 bytes, expected 7",
    ),
    "missing": ("model/model.safetensors", Path.unlink, "missing"),
    "link": ("model/model.safetensors", lambda p: (p.rename(p.with_name("x")), p.symlink_to("x")), "missing"),
    "extra file": ("model/extra", lambda p: p.write_bytes(b"x"), "not recorded"),
    "edited record": ("manifest.json", edit_metric, "record was changed"),
    "broken record": ("manifest.json", lambda p: p.write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_step_is_set_aside_with_its_reason_and_never_used(tmp_path, name):
    store = FileStore(tmp_path)
    folder = put(store)
    file, damage, expected = DAMAGES[name]
    damage(folder / file)
    reasons: list[str] = []
    assert store.find(KEY, reasons.append) is None
    assert expected in reasons[0]
    assert not folder.exists() and len(list((tmp_path / "quarantine").iterdir())) == 1
    put(store)
    assert store.find(KEY, pytest.fail) == folder


def test_a_workdir_is_gone_afterwards_also_after_an_error(tmp_path):
    store = FileStore(tmp_path)
    with pytest.raises(RuntimeError), store.workdir() as workdir:
        (workdir / "half").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "tmp").iterdir()) == []


def _leave_a_workdir(root: Path) -> None:
    with FileStore(root).workdir() as workdir:
        (workdir / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_left_is_swept_and_what_a_live_one_uses_is_not(tmp_path):
    store = FileStore(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_leave_a_workdir, args=(tmp_path,))
    process.start()
    process.join()
    left = [p for p in (tmp_path / "tmp").iterdir() if p.is_dir()]
    assert len(left) == 1
    with store.workdir() as mine:
        with store.workdir():
            assert mine.exists()
        assert not left[0].exists()


def test_a_folder_is_made_once_for_a_key(tmp_path):
    store, made = FileStore(tmp_path), []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "table.json").write_text("{}")

    first = store.folder("latency", {"device": "local"}, make)
    assert store.folder("latency", {"device": "local"}, make) == first
    assert (first / "table.json").exists() and len(made) == 1
    assert store.folder("latency", {"device": "other"}, make) != first


def test_a_lock_that_is_held_says_who_waits_for_what(tmp_path):
    path, waited = tmp_path / "x.lock", []
    with lock(path, wait_s=0):
        assert held(path)
        started = time.monotonic()
        with pytest.raises(
            EnvironmentMissing, match=r"another run holds the lock .*x\.lock \(waited 0\.2 s\)"
        ):
            with lock(path, wait_s=0.2, waiting=lambda: waited.append(1)):
                pytest.fail("taken twice")
        assert time.monotonic() - started < 20 and waited == [1]
    assert not held(path)


# ---------------------------------------------------------------- unfinished steps


def test_progress_of_an_unfinished_step_is_its_own_until_it_is_dropped(tmp_path):
    store = FileStore(tmp_path)
    one, other = store.checkpoints("a" * 64), store.checkpoints("b" * 64)
    (one / "state.json").write_text("1")
    (other / "state.json").write_text("2")
    assert (store.checkpoints("a" * 64) / "state.json").read_text() == "1"
    store.drop_checkpoints("a" * 64)
    store.drop_checkpoints("a" * 64)  # what is not there is dropped already
    assert not one.exists() and (other / "state.json").read_text() == "2"


def test_a_record_that_names_a_file_outside_of_its_folder_is_not_used(tmp_path):
    store = FileStore(tmp_path)
    folder = put(store)
    (folder.parent / "outside").mkdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    outside = Artifact.of("train", "checkpoint", folder.parent / "outside").to_json(folder)
    manifest["artifacts"] = [outside | {"path": "../outside"}]
    write_json(folder / "manifest.json", manifest | {"seal": seal(manifest)})
    reasons = []
    assert store.find(KEY, reasons.append) is None and "lies outside of it" in reasons[0]
