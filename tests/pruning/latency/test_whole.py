"""Whole models measured again while the machine is slower than it was."""

from types import SimpleNamespace

import pytest
from torch import nn

from deploycompress.pruning.latency import whole
from deploycompress.pruning.latency.whole import BASELINE, PATIENCE_S, PAUSE_S, WholeModels

PAUSES = int(PATIENCE_S / PAUSE_S)


class Unexported(WholeModels):
    def _candidate(self, id, module, workdir):
        return SimpleNamespace(id=id)


@pytest.fixture
def measured(monkeypatch):
    """Measures no plan in jobs in which the unpruned model takes the given milliseconds; the pauses between them."""
    pauses = []
    monkeypatch.setattr(whole.time, "sleep", pauses.append)

    def measure(*jobs):
        left = iter(jobs)
        monkeypatch.setattr(whole, "measure", lambda *args, **kwargs: {BASELINE: _took(next(left))})
        target = SimpleNamespace(batch_size=1, precision="fp32")
        place = SimpleNamespace(target=target, device=None, candidate=lambda id, path: id)
        model = SimpleNamespace(example=lambda size: {})
        models = Unexported(nn.Identity(), nn.Identity(), model, (), (), place, None)
        return models, left, pauses

    return measure


def test_one_lucky_job_does_not_make_all_others_slow(measured):
    models, _, pauses = measured(*[2.0] * 10, 1.8, *[2.0] * 10)
    for _ in range(21):
        models.measure([], blocks=1, block_ms=1.0)
    assert not pauses and models.at_full_pace(2.1) and not models.at_full_pace(2.2)


def test_a_pace_a_little_slower_is_waited_for_and_counts_when_it_lasts(measured):
    models, left, pauses = measured(2.0, 2.0, *[2.1] * (PAUSES + 1), 9.0)
    for _ in range(3):
        models.measure([], blocks=1, block_ms=1.0)
    assert len(pauses) == PAUSES and list(left) == [9.0]
    assert models.pace_ms == 2.1 and models.at_full_pace(models.pace_ms)


def _took(ms, speedup=None):
    return SimpleNamespace(latency_ms=SimpleNamespace(p50=ms), speedup=speedup, notes=())


def test_a_plan_takes_what_it_took_in_the_mean_of_its_processes(measured, monkeypatch):
    models, _, _ = measured()
    speedups = iter([2.0, 4.0, 4.0])

    def job(*args, **kwargs):
        return {BASELINE: _took(2.0), "plan0": _took(1.0, SimpleNamespace(value=next(speedups)))}

    monkeypatch.setattr(whole, "measure", job)
    assert models.measure([{}], blocks=1, block_ms=1.0, processes=3) == [pytest.approx(1 / 3)]


def test_a_slower_machine_is_waited_for(measured):
    models, left, pauses = measured(2.0, 3.0, 3.1, 2.06)
    models.measure([], blocks=1, block_ms=1.0)
    assert not pauses
    models.measure([], blocks=1, block_ms=1.0)
    assert len(pauses) == 2 and not list(left)
    assert models.pace_ms == 2.06 and models.unpruned_ms == pytest.approx(2.03)
    assert models.at_full_pace(2.1) and not models.at_full_pace(3.0)


def test_of_several_processes_the_slowest_one_tells_the_pace(measured):
    models, _, _ = measured(2.0, 2.0, 2.0, *[3.0] * (PAUSES + 1), 2.0)
    models.measure([], blocks=1, block_ms=1.0, processes=2)
    models.measure([], blocks=1, block_ms=1.0, processes=3)
    assert models.pace_ms == 3.0 and not models.at_full_pace(models.pace_ms)


def test_one_that_stays_slow_is_measured_as_it_is(measured):
    models, left, pauses = measured(2.0, 2.0, *[3.0] * (PAUSES + 1), 9.0)
    for _ in range(3):
        models.measure([], blocks=1, block_ms=1.0)
    assert len(pauses) == PAUSES and list(left) == [9.0]
    assert models.pace_ms == 3.0 and models.unpruned_ms == 2.0
