"""The study: what is asked for, what goes on after a kill, what is hopeless; in a real database."""

from __future__ import annotations

import importlib.util
import re

import optuna
import pytest
from sqlalchemy.exc import IntegrityError

from deploycompress.contracts import MetricInfo
from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.sweep import storage
from deploycompress.sweep.reader import read
from deploycompress.sweep.storage import open_storage
from deploycompress.sweep.study import Study

ACCURACY = MetricInfo("accuracy", True, "share")
RECORD = {"name": "a trial", "state": "complete"}


@pytest.fixture
def opened(sweep_file, tmp_path):
    """(replaced parts of the file) -> a study of it; each call is a new process's view of the same database."""

    def open_study(*replaced, owner="here", **more):
        sweep = read(sweep_file(*replaced, **more))
        (tmp_path / "out").mkdir(exist_ok=True)
        return Study(sweep, open_storage(sweep, tmp_path / "out"), owner, workers=1)

    return open_study


SPACE = ("{low: 1.0, high: 8.0}", "[1, 4]")  # of four combinations


@pytest.mark.parametrize("method", ["tpe", "random", "nsga2", "grid"])
def test_each_method_tries_every_combination_once_and_then_ends(opened, method):
    study = opened(SPACE, ("budget: 4 trials", f"method: {method}\nbudget: 99 trials"))
    seen = []
    while (trial := study.ask()) is not None:
        seen.append(tuple(trial.values.values()))
        study.complete(trial, RECORD, [0.9, 1.0])
    assert sorted(seen) == [("60%", "1"), ("60%", "4"), ("80%", "1"), ("80%", "4")]
    assert study.count() == 4, "what was only repeated is no part of the budget"


def test_values_of_a_range_lie_in_it_and_differ_after_a_restart(opened):
    values = set()
    for _ in range(3):
        study = opened(("budget: 4 trials", "method: random\nbudget: 99 trials"))
        trial = study.ask()
        values.add(float(trial.values["distill.temperature"]))
        study.complete(trial, RECORD, [0.9, 1.0])
    assert len(values) == 3 and all(1 <= value <= 8 for value in values)


def test_whole_ends_give_whole_numbers_with_their_unit(opened):
    study = opened(("{low: 1.0, high: 8.0}", "{low: 2, high: 6}"), ("[80%, 60%]", "{low: 40%, high: 80%}"))
    trial = study.ask()
    assert int(trial.values["distill.temperature"]) in range(2, 7)
    assert trial.values["prune.target.macs"].removesuffix("%").isdigit()


def test_a_killed_sweep_finds_its_trials_and_no_others(opened):
    study = opened()
    done, under_way = study.ask(), study.ask()
    study.complete(done, RECORD, [0.9, 1.0])
    theirs = opened(owner="another machine").ask()

    again = opened()
    assert [(t.number, t.values) for t in again.unfinished()] == [(under_way.number, under_way.values)]
    assert theirs.number == 2 and again.count() == 3
    assert again.records() == [RECORD]
    again.failed(again.unfinished()[0], {"name": "b", "state": "failed"})
    assert [r["state"] for r in opened().records()] == ["complete", "failed"]


def test_time_that_was_spent_is_remembered(opened):
    opened().spend(12.5)
    assert opened().spent_s == 12.5 and opened(owner="another machine").spent_s == 0


@pytest.mark.parametrize(
    "change", [("accuracy: maximise, latency_p50", "accuracy: maximise, throughput: maximise, latency_p50"),
               ("[80%, 60%]", "[80%, 50%]")], ids=["objectives", "search"]
)  # fmt: skip
def test_a_changed_sweep_is_not_mixed_with_the_old_one(opened, change):
    opened()
    with pytest.raises(ConfigError) as caught:
        opened(change)
    assert "is of another sweep" in str(caught.value) and "another --out" in str(caught.value)


def test_a_larger_budget_goes_on(opened):
    opened()
    opened(("4 trials", "8 trials"))


def test_a_matrix_is_asked_for_in_its_order(opened):
    text = "name: m\npipeline: pipeline.yaml\nmatrix: {distill.temperature: [2, 4], prune.target.macs: [80%, 60%]}\n"
    study = opened(text=text)
    first = study.ask()
    again = opened(text=text)  # not enqueued twice
    rest = [again.ask() for _ in range(3)]
    assert again.ask() is None
    order = [(t.values["prune.target.macs"], t.values["distill.temperature"]) for t in (first, *rest)]
    assert order == [("80%", "2"), ("80%", "4"), ("60%", "2"), ("60%", "4")]


# ---------------------------------------------------------------- hopeless trials


def test_a_trial_below_the_level_is_hopeless_after_its_recovery_and_not_before(opened):
    study = opened(("budget: 4 trials", "budget: 4 trials\npruning: {after: 2 epochs, min: 80%}"))
    trial = study.ask()
    assert not study.hopeless(trial, ACCURACY, [])
    assert not study.hopeless(trial, ACCURACY, [(1, 0.3)])
    assert study.hopeless(trial, ACCURACY, [(1, 0.3), (2, 0.79)])
    study.pruned(trial, {"name": "trial 0", "state": "pruned"})
    better = study.ask()
    assert not study.hopeless(better, ACCURACY, [(1, 0.3), (2, 0.81)])


def test_without_a_level_the_median_of_the_others_decides(opened):
    study = opened(("budget: 4 trials", "budget: 4 trials\npruning: {after: 1 epoch}"))
    for value in (0.7, 0.8, 0.9, 0.95):
        trial = study.ask()
        assert not study.hopeless(trial, ACCURACY, [(1, value)]), "four are needed for a median"
        study.complete(trial, RECORD, [value, 1.0])
    assert study.hopeless(study.ask(), ACCURACY, [(1, 0.84)])
    assert not study.hopeless(study.ask(), ACCURACY, [(1, 0.86)])


def test_an_error_is_hopeless_above_its_level(opened):
    study = opened(("budget: 4 trials", "budget: 4 trials\npruning: {after: 1 epoch, max: 0.5}"))
    mae = MetricInfo("mae", False, "")
    assert study.hopeless(study.ask(), mae, [(1, 0.6)]) and not study.hopeless(study.ask(), mae, [(1, 0.4)])


def test_importances_say_which_path_matters(opened):
    study = opened(("budget: 4 trials", "method: random\nbudget: 30 trials"))
    assert study.importances() == {}
    for _ in range(12):
        trial = study.ask()
        macs, temperature = (float(v.removesuffix("%")) for v in trial.values.values())
        study.complete(trial, RECORD, [macs / 100, temperature])
    found = study.importances()
    assert found["accuracy"]["prune.target.macs"] > 0.8
    assert found["latency_p50"]["distill.temperature"] > 0.8


# ---------------------------------------------------------------- databases

STORAGES = {
    "sqlite:////nowhere/at/all.db": (EnvironmentMissing, "unable to open database file"),
    "postgresql://me:secret@127.0.0.1:1/db": (EnvironmentMissing, "is not"),
    "nonsense": (ConfigError, "not the URL of a database"),
    "oracel://me:secret@host/db": (EnvironmentMissing, "is not to be had"),
}


@pytest.mark.parametrize("url", STORAGES)
def test_a_database_that_is_away_is_said_with_its_place_and_without_its_password(opened, url):
    kind, words = STORAGES[url]
    with pytest.raises(kind) as caught:
        opened(("budget: 4 trials", f"budget: 4 trials\nstorage: {url}"))
    said = str(caught.value)
    assert words in said and "sweep.yaml:8:10: storage" in said and "secret" not in said


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is not None, reason="psycopg is installed")
def test_a_driver_that_is_missing_is_named_as_it_is_installed(opened):
    for url, words in {
        "postgresql+psycopg://host/db": "pip install 'psycopg[binary]'",
        "mysql+pymysql://host/db": "pip install pymysql",
    }.items():
        with pytest.raises(EnvironmentMissing, match=re.escape(words)):
            opened(("budget: 4 trials", f"budget: 4 trials\nstorage: {url}"))


def test_tables_that_another_machine_makes_just_now_are_waited_for(opened, monkeypatch):
    """Seen with PostgreSQL, where two begin at once with a new database."""
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.01))
    tries = []

    class Racing(optuna.storages.RDBStorage):
        def __init__(self, *given, **more):
            tries.append(given)
            if len(tries) < 3:
                raise IntegrityError("CREATE TABLE", {}, Exception("duplicate key"))
            super().__init__(*given, **more)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Racing)
    assert opened().ask().number == 0 and len(tries) == 3
    tries.clear()
    monkeypatch.setattr(storage, "PAUSES_S", (0.01,))
    with pytest.raises(EnvironmentMissing, match="duplicate key"):
        opened()
