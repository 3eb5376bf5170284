"""Which calls of weights are seen, and what a catalogue of them computes."""

import numpy as np
import pytest
import torch
from torch import nn

from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.graph.catalogue import write_catalogue
from deploycompress.graph.execution import run_onnx
from deploycompress.graph.operators import Operator, operators
from deploycompress.model.source import SourceModel

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.spatial = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.packed = nn.Linear(4, 12)
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, image):
        x = self.up(self.spatial(self.conv(image))).flatten(2).transpose(1, 2)
        q, k, v = nn.functional.linear(x, self.packed.weight[:8], self.packed.bias[:8]).chunk(2, -1) + (x,)
        return self.heads(q, k, v)[0].mean(1)


def build():
    return Net()
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "net.py").write_text(MODEL)
    inputs = {"image": InputSpec(shape=("batch", 3, 8, 8))}
    return SourceModel(ModelConfig(build=f"{tmp_path / 'net.py'}:build", inputs=inputs), 0)


def test_every_use_of_a_weight_is_seen_with_its_shapes(model):
    found = operators(model.build(), model, 2)
    seen = [(op.layer, op.family, op.input, op.c_out, op.positions) for op in found]
    assert seen[:4] == [
        ("conv", "conv", (2, 3, 8, 8), 8, 2 * 4 * 4),
        ("spatial", "depthwise", (2, 8, 4, 4), 8, 2 * 4 * 4),
        ("up", "conv", (2, 8, 4, 4), 4, 2 * 8 * 8),
        ("packed", "matmul", (128, 4), 8, 128),  # a slice of the weight, in a function of the model's own
    ]
    attention = [(op.layer, op.input, op.c_out) for op in found[4:]]
    assert ("heads", (128, 4), 4) in attention and ("heads.out_proj", (128, 4), 4) in attention


def test_macs_are_those_of_the_layers(model):
    macs = {op.layer: op.macs for op in operators(model.build(), model, 1)}
    assert macs["conv"] == 4 * 4 * 8 * 3 * 9
    assert macs["spatial"] == 4 * 4 * 8 * 9
    assert macs["up"] == 4 * 4 * 8 * 4 * 4
    assert macs["packed"] == 64 * 4 * 8


def test_bytes_moved_are_those_of_inputs_weights_and_outputs(model):
    moved = {op.layer: op.bytes_moved for op in operators(model.build(), model, 1)}
    assert moved["conv"] == 4 * (3 * 64 + 8 * 3 * 9 + 8 * 16)
    assert moved["spatial"] == 4 * (8 * 16 + 8 * 9 + 8 * 16)
    assert moved["packed"] == 4 * (4 * 8 + 64 * 8 + 4 * 64)


def test_widths_of_a_depthwise_one_move_together():
    operator = Operator("a", "conv", (1, 8, 4, 4), 8, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), groups=8)
    assert operator.at(4, 99) == Operator(
        "a", "conv", (1, 4, 4, 4), 4, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), groups=4
    )


def test_a_catalogue_computes_each_operator_by_itself(model, tmp_path):
    points = [op.anywhere() for op in operators(model.build(), model, 1)][:4]
    points.append(points[0].at(3, 16))
    path = tmp_path / "catalogue.onnx"
    feed = write_catalogue(points, path)
    import onnx

    weights = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in onnx.load(path).graph.initializer}
    (found,) = run_onnx(path, [feed])
    assert sorted(found) == [f"r{number}" for number in range(5)]
    for number, point in enumerate(points):
        given = feed["in_" + "x".join(map(str, point.input))]
        read = nn.functional.leaky_relu(torch.tensor(given), 1e-5 * (number + 1))
        weight, bias = weights[f"p{number}_weight"], weights.get(f"p{number}_bias")
        if point.kind == "matmul":
            made = (read @ weight + (0 if bias is None else bias)).max()
            assert weight.shape == (point.c_in, point.c_out)
        else:
            run = nn.functional.conv_transpose2d if point.kind == "conv_transpose" else nn.functional.conv2d
            made = run(read, weight, bias, point.stride, point.padding, groups=point.groups).amax((2, 3))
        np.testing.assert_allclose(found[f"r{number}"].ravel(), made.numpy().ravel(), rtol=1e-4, atol=1e-5)
