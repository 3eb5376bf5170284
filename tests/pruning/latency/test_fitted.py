"""Latency costs of a small network from nothing, in the real runtime and in one that times no operators."""

import pytest

from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.engine.store import FileStore
from deploycompress.model.source import SourceModel
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.latency.bench import Bench, Place
from deploycompress.pruning.latency.fitted import UNMEASURED_ALIGN, fitted_costs

MODEL = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )
"""

RUNTIME = '''
import contextlib

import numpy as np


class Plain:
    """ONNX Runtime without its profiler."""

    accepts = frozenset({"onnx"})
    libraries = ("onnxruntime",)

    def missing(self):
        return None

    @contextlib.contextmanager
    def open(self, path, options):
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        yield PlainSession(onnxruntime.InferenceSession(str(path), settings))


class PlainSession:
    def __init__(self, session):
        self.session = session
        self.inputs = {i.name: None for i in session.get_inputs()}
        self.outputs = [o.name for o in session.get_outputs()]

    def bind(self, feed):
        return lambda: setattr(self, "found", self.session.run(None, feed))

    def fetch(self):
        return dict(zip(self.outputs, self.found))
'''


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "deploycompress.pruning.latency.fitted.PROBED_SHARES", (0.75, 0.4)
    )  # each is an export
    (tmp_path / "net.py").write_text(MODEL)
    inputs = {"image": InputSpec(shape=("batch", 3, 24, 24))}
    return SourceModel(ModelConfig(build=f"{tmp_path / 'net.py'}:build", inputs=inputs), 0)


def fitted(model, tmp_path, **target):
    module = model.build()
    place = Place.of(TargetConfig(**target))
    bench = Bench(place, FileStore(tmp_path / "store"), tmp_path, lambda event: None)
    return fitted_costs(module, model, find_groups(module, model).groups, (), None, bench)


def test_operators_stand_for_the_whole(model, tmp_path):
    found = fitted(model, tmp_path)
    full = found.costs.full
    smallest = {group.id: group.grid[0] for group in found.groups}
    assert not found.notes and found.points >= 6
    assert 0 < found.costs.latency_ms(smallest) < 0.6 * found.costs.latency_ms(full)


def test_multiply_accumulates_stand_in_where_operators_are_not_timed(model, tmp_path, monkeypatch):
    (tmp_path / "plain_runtime.py").write_text(RUNTIME)
    monkeypatch.syspath_prepend(tmp_path)
    found = fitted(model, tmp_path, runtime="plain_runtime:Plain")
    assert found.align == UNMEASURED_ALIGN
    assert "multiply-accumulates stand in for the latency table" in found.notes[0].message
    smallest = {group.id: group.grid[0] for group in found.groups}
    assert 0 < found.costs.latency_ms(smallest) < found.costs.latency_ms(found.costs.full)
