"""Training with the values of INT8: by hand, undone, and the same in the file that ONNX Runtime runs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError
from deploycompress.graph.execution import run, run_onnx
from deploycompress.graph.export import export_onnx
from deploycompress.graph.ladder.scales import scales_by_layer, scales_of
from deploycompress.graph.quantization import quantize_onnx
from deploycompress.model.source import SourceModel
from deploycompress.recovery.fake_quantization import InputScale, calibrated, fake_quantized
from deploycompress.runtimes.onnxruntime import OnnxRuntime

NETWORK = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 10),
    )
"""


@pytest.fixture
def model(tmp_path: Path) -> SourceModel:
    (tmp_path / "network.py").write_text(NETWORK)
    inputs = {"image": InputSpec(shape=("batch", 3, 12, 12))}
    return SourceModel(ModelConfig(build=f"{tmp_path / 'network.py'}:build", inputs=inputs), 0)


def batches(count: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [Batch({"image": torch.randn(16, 3, 12, 12, generator=generator)}, None, 16) for _ in range(count)]


def test_a_layer_computes_with_rounded_values() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, 0.004], [-2.54, 0.03]]))
    x = torch.tensor([[0.26, -0.09]])
    with fake_quantized(layer, {"": InputScale(0.1, 10)}):
        found = layer(x)
    # Scales 0.01 and 0.02 by row: 0.004 -> 0, 0.03 -> 0.04 (a tie goes to the even level, 2); x -> 0.3, -0.1
    expected = torch.tensor([[1.27 * 0.3, -2.54 * 0.3 - 0.04 * 0.1]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)  # as before


def test_gradients_pass_and_everything_is_as_before_afterwards(model: SourceModel) -> None:
    student = model.build()
    names, before = list(student.state_dict()), copy.deepcopy(student.state_dict())
    scales = calibrated(student, model, batches(2), symmetric=False)
    assert set(scales) == {"0", "3", "6", "9"}
    with fake_quantized(student, scales):
        copied = copy.deepcopy(student)  # as an average of the weights is
        out = student(batches(1)[0].inputs["image"])
        out.sum().backward()
        torch.testing.assert_close(copied(batches(1)[0].inputs["image"]), out)
        with pytest.raises(RuntimeError):
            student(torch.zeros(1, 5, 12, 12))  # a layer that fails gives its weight back as well
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in student.named_parameters() if "weight" in n
    )
    assert list(student.state_dict()) == names
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())
    assert all(isinstance(m.weight, nn.Parameter) for m in student.modules() if isinstance(m, nn.Conv2d))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


def test_a_range_always_holds_zero_and_a_symmetric_one_its_mirror(model: SourceModel) -> None:
    student = model.build()
    above = [Batch({"image": torch.rand(4, 3, 12, 12) + 1.0}, None, 4)]
    assert calibrated(student, model, above, symmetric=False)["0"].zero_point == 0
    most = float(above[0].inputs["image"].max())
    assert calibrated(student, model, above, symmetric=False)["0"].scale == pytest.approx(most / 255)
    assert calibrated(student, model, above, symmetric=True)["0"] == InputScale(
        pytest.approx(most / 127), 128
    )
    with pytest.raises(ConfigError, match="no convolution or linear layer that could be quantized"):
        calibrated(nn.Flatten(), _Flat(), above, symmetric=False)  # type: ignore[arg-type]


class _Flat:
    def call(self, module: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y": module(*inputs.values())}


@pytest.mark.parametrize("scheme", ["u8s8", "s8s8", "s8s8_symmetric"])
def test_the_file_computes_what_training_saw(model: SourceModel, scheme: str, tmp_path: Path) -> None:
    """Scales that were trained with are in it exactly; outputs are within one level on 99 % of the values."""
    student = model.build()
    torch.manual_seed(0)
    with torch.no_grad():
        for part in student.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.3, 3)
    student.eval()
    scales = calibrated(student, model, batches(), symmetric=scheme == "s8s8_symmetric")
    feeds = [{"image": batch.inputs["image"].numpy()} for batch in batches()]
    with fake_quantized(student, scales), torch.no_grad():
        expected = np.concatenate([student(batch.inputs["image"]).numpy() for batch in batches()])
    source, path = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(student, model, source, feeds=[model.example(2)])
    activation = "QUInt8" if scheme == "u8s8" else "QInt8"
    known = {name: (scale.scale, scale.zero_point) for name, scale in scales.items()}
    carried, in_float = scales_by_layer(source, known, activation)
    assert len(carried) == 4 and in_float == []
    quantize_onnx(source, path, feeds, scheme=scheme, scales=carried)
    written = scales_of(path)
    for tensor, ((override,),) in ((t, (o,)) for t, o in carried.items()):
        assert np.float32(written[tensor][0]["scale"]) == override["scale"]
        assert int(written[tensor][0]["zero_point"]) == int(override["zero_point"])
    (output,) = onnx.load(source).graph.output
    level = float(written[output.name][0]["scale"])
    # As written: INT8 products of ONNX Runtime saturate on a processor without VNNI.
    outputs = run(OnnxRuntime(), path, feeds, {"graph_level": "off"})
    found = np.concatenate([of[output.name] for of in outputs])
    # Half of a symmetric range lies unused behind a ReLU: a value on the edge of two levels falls twice as far there.
    levels = 2 if scheme == "s8s8_symmetric" else 1
    assert (np.abs(found - expected) <= (levels + 0.01) * level).mean() >= 0.99
    without = run_onnx(source, feeds)
    assert (
        np.abs(np.concatenate([of[output.name] for of in without]) - expected).max() > level
    )  # rounding shows
