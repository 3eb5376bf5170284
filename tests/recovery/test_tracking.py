"""Trackers: the real ones, offline, where they are installed; and what is said where one is not, or fails."""

from __future__ import annotations

import builtins
import math
import sys
import threading
from dataclasses import replace

import pytest
from accelerate.tracking import GeneralTracker

from deploycompress.errors import EnvironmentMissing, StageFailed
from deploycompress.recovery.objectives import Supervised
from deploycompress.recovery.processes import Processes
from deploycompress.recovery.recipe import Recipe, require_trackers
from deploycompress.recovery.tracking import Tracking
from deploycompress.recovery.training import fit

CURVES = {"loss", "lr", "epoch_loss", "epoch_val_accuracy"}


def trained(net, run, folder, *track, **recipe):
    options = {"epochs": 3, "lr": 0.05, "track": track, "track_folder": str(folder)} | recipe
    return fit(net, Supervised(run.model, run.task), Recipe(**options), run)


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file = min(folder.rglob("events.out.*"), key=lambda path: len(path.parts))  # the settings lie deeper
    read = EventAccumulator(str(file.parent))
    read.Reload()
    return read


def test_tensorboard_on_request(network, context, tmp_path):
    trained(network(), context(), tmp_path, "tensorboard")
    read = curves(tmp_path)
    assert set(read.Tags()["scalars"]) >= CURVES
    assert len(read.Scalars("epoch_loss")) == 3


def test_mlflow_on_request(network, context, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a data base needs the whole of mlflow
    history = trained(network(), context(), tmp_path, "mlflow", ema=0.9)
    client = mlflow.MlflowClient((tmp_path / "runs").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'deploycompress'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["ema"] == "0.9"
    assert set(run.data.metrics) == CURVES
    sent = client.get_metric_history(run.info.run_id, "epoch_loss")
    assert [(m.step, m.value) for m in sent] == [(6 * e["epoch"], e["loss"]) for e in history]


def test_wandb_on_request(network, context, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(network(), context(), tmp_path / "curves", "wandb", ema=0.9)
    (file,) = (tmp_path / "curves").rglob("run-*.wandb")
    written = file.read_bytes()
    assert all(name.encode() in written for name in CURVES | {"ema"})


def test_no_tracker_is_imported_unless_asked_for(network, context, monkeypatch, tmp_path):
    wanted, plain = set(), builtins.__import__

    def watched(name, globals=None, locals=None, fromlist=(), level=0):
        words = f"{name} {fromlist}"
        wanted.update(t for t in ("tensorboard", "wandb", "mlflow") if t in words)
        return plain(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", watched)
    trained(network(), context(), tmp_path, epochs=1)
    assert wanted == set()
    trained(network(), context(), tmp_path, "tensorboard", epochs=1)
    assert wanted == {"tensorboard"}


def test_a_missing_tracker_is_said_before_anything_runs(monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    require_trackers(Recipe(track=["tensorboard"]))
    with pytest.raises(EnvironmentMissing, match=r"track needs wandb, mlflow; install with: pip install"):
        require_trackers(Recipe(track=["wandb", "mlflow"]))


def test_a_tracker_that_does_not_start_is_said_before_the_first_epoch(network, context, tmp_path):
    (tmp_path / "curves").write_text("no folder")
    with pytest.raises(EnvironmentMissing, match=r"track: tensorboard could not be started: .*; log in, say"):
        trained(network(), context(), tmp_path / "curves", "tensorboard")


def test_a_tracker_that_fails_later_is_told_of_and_left_out(tmp_path):
    class Gone(GeneralTracker):
        name, requires_logging_directory, main_process_only, tracker = "gone", False, True, None
        asked = 0

        def __init__(self):
            super().__init__(_blank=True)

        def start(self): ...
        def store_init_configuration(self, values): ...

        def log(self, values, step=None, **kwargs):
            Gone.asked += 1
            raise ConnectionError("no route to host")

    events, recipe = [], Recipe(track=["tensorboard"], track_folder=str(tmp_path))
    processes = Processes(recipe)
    processes.accelerator.log_with.insert(0, Gone())
    tracking = Tracking(recipe, processes, events.append, rehearsal=False)
    for number in (1, 2):
        tracking.epoch({"loss": 1.0 / number}, number)
    tracking.close()
    assert [e.message for e in events] == [
        "track: gone fails, and is sent nothing more: ConnectionError: no route to host"
    ]
    assert Gone.asked == 1 and [s.step for s in curves(tmp_path).Scalars("epoch_loss")] == [1, 2]


def test_the_curves_of_a_training_that_fails_are_kept_and_closed(network, context, tmp_path):
    read, before = [], set(threading.enumerate())

    def spoil(batch, number):
        read.append(number)
        whole = len(read) <= 12  # a count of the batches, and the first epoch
        return batch if whole else replace(batch, inputs={"x": batch.inputs["x"] * math.nan})

    with pytest.raises(StageFailed, match="epoch 2"):
        trained(network(), context(spoil), tmp_path, "tensorboard")
    assert len(curves(tmp_path).Scalars("epoch_loss")) == 1
    assert set(threading.enumerate()) <= before, "the writer has not ended"
