"""The first node or layer from which on two networks differ is named, with both values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploycompress.graph import bisect
from deploycompress.graph.bisect import first_difference, first_layer
from deploycompress.model.parity import Parity


def differs(parity: Parity) -> bool:
    return parity.relative > 1e-4


@pytest.fixture
def changed(exported: Path, tmp_path: Path):
    """(initializer, change) -> the file with another tensor in its place."""

    def make(name, change):
        document = onnx.load(exported)
        (tensor,) = (t for t in document.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(np.array(numpy_helper.to_array(tensor))), name))
        path = tmp_path / "changed.onnx"
        onnx.save(document, path)
        return path

    return make


def spoiled(values):
    values[3] += 5
    return values


def test_the_first_node_is_named_with_the_values(exported, changed, feed):
    found = first_difference(exported, changed("3.weight", spoiled), feed(2), differs)
    assert found.where.startswith("node ") and found.where.endswith("(Conv)") and found.place[1] == 3
    names = [node.name or node.output[0] for node in onnx.load(exported).graph.node if node.op_type == "Conv"]
    assert found.where == f"node {names[1]} (Conv)"
    assert abs(found.expected - found.found) > 1
    assert str(found) == (
        f"it begins at {found.where}: {found.found:.6g} at {list(found.place)}, expected {found.expected:.6g}"
    )


def test_what_is_no_number_is_a_difference(exported, changed, feed):
    path = changed("3.weight", lambda values: np.full_like(values, np.nan))
    found = first_difference(exported, path, feed(2), differs)
    assert found.where.endswith("(Conv)") and np.isnan(found.found) and np.isfinite(found.expected)


def test_nothing_is_named_where_nothing_differs_or_can_be_looked_at(exported, changed, feed, monkeypatch):
    assert first_difference(exported, exported, feed(2), differs) is None
    path = changed("3.weight", spoiled)
    assert first_difference(exported, path, {"other": np.zeros(3)}, differs) is None
    monkeypatch.setattr(bisect, "LARGEST_BYTES", 100)
    assert first_difference(exported, path, feed(2), differs) is None


def test_the_first_layer_is_found_by_what_it_gives(exported, changed, small, network):
    """The file has no batch normalisation any more: those layers, and what reads them, are found again behind it."""
    model = small(network(), image=("batch", 3, 12, 12))
    example = model.example(2)
    assert first_layer(model.module, model, exported, example, differs) is None
    path = changed("8.weight", spoiled)
    found = first_layer(model.module, model, path, example, differs)
    assert found.where == "layer 8" and found.place[1] == 3 and abs(found.expected - found.found) > 1e-3
    early = first_layer(model.module, model, changed("3.weight", spoiled), example, differs)
    assert early.where in ("layer 3", "layer 4")  # 3 is folded with 4


class Repeated(nn.Module):
    """One layer called twice, an output of no tensor, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.gru, self.idle = nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True), nn.Identity()

    def forward(self, x):
        self.idle(x.long())
        return self.gru(self.same(self.same(x)))[0]


def test_layers_that_say_nothing_are_passed_over(small, tmp_path):
    from deploycompress.graph.export import export_onnx

    torch.manual_seed(0)
    model = small(Repeated(), x=("batch", 3, 4))
    path = export_onnx(model.module, model, tmp_path / "m.onnx", feeds=[model.example(1)]).path
    assert first_layer(model.module, model, path, model.example(2), differs) is None
    with torch.no_grad():
        model.module.same.bias += 1
    found = first_layer(model.module, model, path, model.example(2), differs)
    assert found.where == "layer same"
