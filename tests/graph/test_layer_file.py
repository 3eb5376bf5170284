"""A file of one layer computes what the layer computes, and passes the check of foreign files."""

import pytest
import torch
from torch import nn

from deploycompress.graph.execution import run_onnx
from deploycompress.graph.layer_file import write_layers
from deploycompress.runtimes.onnx_file import check


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Linear(8, 6)], (3, 8)),
        ([nn.Linear(8, 4, bias=False), nn.Linear(4, 6)], (3, 8)),
        ([nn.Linear(8, 4, bias=False), nn.Linear(4, 6)], (3, 5, 8)),
        ([nn.Conv2d(6, 8, 3, stride=2, padding=1)], (2, 6, 9, 9)),
        ([nn.Conv2d(6, 4, (2, 3), padding="same", dilation=2, bias=False), nn.Conv2d(4, 8, 1)], (2, 6, 9, 9)),
        ([nn.Conv1d(6, 8, 3, groups=2)], (2, 6, 9)),
    ],
)
def test_the_file_computes_the_same(layers, shape, tmp_path):
    path = tmp_path / "made" / "model.onnx"
    write_layers(layers, shape, path)
    check(str(path))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (outputs,) = run_onnx(path, [{"x": x.numpy()}])
    with torch.no_grad():
        expected = nn.Sequential(*layers)(x)
    assert torch.allclose(torch.from_numpy(next(iter(outputs.values()))), expected, atol=1e-5)
