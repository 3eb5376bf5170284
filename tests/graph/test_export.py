"""From a module to an ONNX file that computes the same."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from deploycompress.errors import StageFailed
from deploycompress.graph import export, exporters
from deploycompress.graph.execution import fixed_batch_of, inspect_onnx, run_onnx
from deploycompress.graph.export import export_onnx
from deploycompress.model.parity import compare, to_numpy


def test_names_dimensions_and_folding(exported: Path, small, network) -> None:
    described = inspect_onnx(exported)
    assert described["opset"] == 18
    assert described["inputs"] == {"image": {"type": 1, "shape": ["batch", 3, 12, 12]}}
    assert described["outputs"] == {"output": {"type": 1, "shape": ["batch", 5]}}
    assert "BatchNormalization" not in described["ops"] and described["ops"]["Conv"] == 2
    assert described["metadata"] == {"deploycompress.version": "0.1.0", "deploycompress.exporter": "dynamo"}
    assert fixed_batch_of(exported) is None
    names = {initializer.name for initializer in onnx.load(exported).graph.initializer}
    assert {"0.weight", "8.weight"} <= names
    model = small(network(), image=("batch", 3, 12, 12))
    for batch in (1, 2, 7):
        example = model.example(batch)
        wanted = to_numpy(model.call(model.module, example))
        assert compare(wanted, run_onnx(exported, [to_numpy(example)])[0]).relative < 1e-5


def test_says_nothing_of_this_machine_and_is_the_same_every_time(exported: Path, tmp_path: Path) -> None:
    """Another process, which has other addresses and another hash seed."""
    conftest = Path(__file__).with_name("conftest.py")
    script = f"""
import runpy, sys
from pathlib import Path
own = runpy.run_path({str(conftest)!r})
model = own["_small"](own["_network"](), image=("batch", 3, 12, 12))
own["export_onnx"](model.module, model, Path(sys.argv[1]), feeds=[model.example(1), model.example(5)])
"""
    again = tmp_path / "again.onnx"
    subprocess.run([sys.executable, "-c", script, str(again)], check=True, capture_output=True)
    written = exported.read_bytes()
    assert again.read_bytes() == written
    for trace in (str(Path(__file__).parent), str(Path(torch.__file__).parent), "site-packages", ".py"):
        assert trace.encode() not in written


class TwoInputs(nn.Module):
    """Dictionary out, two inputs, two dynamic dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, sequence: Tensor, offset: Tensor) -> dict[str, Tensor]:
        hidden = self.linear(sequence) + offset[:, None]
        return {"mean": hidden.mean(1), "hidden": hidden}


def test_several_inputs_and_outputs(small, tmp_path: Path) -> None:
    model = small(TwoInputs(), sequence=("batch", "length", 4), offset=("batch", 3))
    path = tmp_path / "model.onnx"
    made = export_onnx(model.module, model, path, feeds=[model.example(1), model.example(3)])
    assert [p.relative < 1e-5 for p in made.parity] == [True, True]
    described = inspect_onnx(path)
    assert described["inputs"]["sequence"]["shape"] == ["batch", "length", 4]
    assert described["outputs"]["hidden"]["shape"] == ["batch", "length", 3]
    longer = {"sequence": torch.randn(3, 11, 4), "offset": torch.randn(3, 3)}
    wanted = to_numpy(model.call(model.module, longer))
    assert compare(wanted, run_onnx(path, [to_numpy(longer)])[0]).relative < 1e-5


def test_a_fixed_batch_is_kept_and_checked_at_that_size(small, network, tmp_path: Path) -> None:
    model = small(network(), image=(3, 3, 12, 12))
    path = tmp_path / "model.onnx"
    one, two, three = ({"image": torch.randn(batch, 3, 12, 12)} for batch in (1, 2, 3))
    made = export_onnx(model.module, model, path, feeds=[one, three])
    assert len(made.parity) == 1
    assert fixed_batch_of(path) == 3
    message = r"no feed has the batch size 3 that input 'image' declares, only \[1, 2\]"
    with pytest.raises(StageFailed, match=message):
        export_onnx(model.module, model, path, feeds=[one, two])


class FrozenBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * i for i, row in enumerate(x)])


def test_a_batch_frozen_by_the_model_is_an_error_with_the_reason(small, tmp_path: Path) -> None:
    model = small(FrozenBatch(), x=("batch", 4))
    with pytest.raises(StageFailed, match="the model does not export to ONNX: dynamo: ") as caught:
        export_onnx(model.module, model, tmp_path / "model.onnx", feeds=[model.example(2)])
    assert "inferred a static shape of 2" in str(caught.value)
    assert "; torchscript: model.onnx does not run in ONNX Runtime: " in str(
        caught.value
    )  # at a batch of three


def test_the_module_is_left_as_it_was(small, network, tmp_path: Path) -> None:
    model = small(network(), image=("batch", 3, 12, 12))
    model.module.train()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    export_onnx(model.module, model, tmp_path / "model.onnx", feeds=[model.example(1)])
    assert model.module.training and model.module[3].weight.requires_grad
    for name, tensor in model.module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


class Branching(nn.Module):
    """What torch.export cannot follow: a branch by the values; with a state for each of the batch, and no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru = nn.Conv2d(3, 8, 3), nn.GRU(8, 6, batch_first=True)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        seen = self.conv(image)
        if float(seen.square().sum()) > 0:
            seen = 2 * seen
        states, _ = self.gru(seen.flatten(2).transpose(1, 2))
        return {"states": states, "mean": seen.mean((2, 3))}


def test_what_dynamo_cannot_follow_is_traced(small, tmp_path: Path) -> None:
    model = small(Branching(), image=("batch", 3, 8, 8))
    made = export_onnx(model.module, model, tmp_path / "m.onnx", feeds=[model.example(n) for n in (1, 5)])
    assert made.exporter == "torchscript" and max(p.relative for p in made.parity) < 1e-5
    reason, warning = made.notes
    assert reason.kind == "fell_back" and reason.message.startswith("dynamo: ")
    assert warning.kind == "warning"
    assert warning.message == (
        "exported by torchscript, which says: Converting a tensor to a Python float might cause the trace to be incorrect"
    )
    described = inspect_onnx(made.path)
    assert described["metadata"]["deploycompress.exporter"] == "torchscript"
    assert described["inputs"]["image"]["shape"] == ["batch", 3, 8, 8]
    assert described["outputs"]["mean"]["shape"] == ["batch", 8]
    assert "conv.weight" in {initializer.name for initializer in onnx.load(made.path).graph.initializer}
    again = export_onnx(model.module, model, tmp_path / "again.onnx", feeds=[model.example(1)])
    assert again.path.read_bytes() == made.path.read_bytes()


def test_both_exporters_give_the_same(small, network, tmp_path: Path, monkeypatch) -> None:
    model = small(network(), image=("batch", 3, 12, 12))
    found = {}
    for name, exporter in exporters.EXPORTERS.items():
        monkeypatch.setattr(export, "EXPORTERS", {name: exporter})
        made = export_onnx(model.module, model, tmp_path / f"{name}.onnx", feeds=[model.example(4)])
        assert made.exporter == name and not made.notes and made.parity[0].relative < 1e-5
        found[name] = inspect_onnx(made.path)
    assert found["dynamo"]["inputs"] == found["torchscript"]["inputs"]
    assert found["dynamo"]["outputs"] == found["torchscript"]["outputs"]


def broken(module, model, example, opset):
    """An exporter whose file computes something else, as pytorch#169178 did."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        other[-1].bias += 1
    return exporters.dynamo(other, model, example, opset)


def absent(module, model, example, opset):
    raise NotImplementedError("no translation for aten.something")


def test_the_ladder_goes_on_and_tells_why(small, network, tmp_path: Path, monkeypatch) -> None:
    model = small(network(), image=("batch", 3, 12, 12))
    ladder = {"first": absent, "dynamo": exporters.dynamo}
    monkeypatch.setattr(export, "EXPORTERS", ladder)
    made = export_onnx(model.module, model, tmp_path / "model.onnx", feeds=[model.example(1)])
    assert made.exporter == "dynamo"
    assert [note.message for note in made.notes] == [
        "first: NotImplementedError: no translation for aten.something"
    ]
    monkeypatch.setattr(export, "EXPORTERS", {"wrong": broken})
    with pytest.raises(
        StageFailed,
        match=r"wrong: at batch size 1 it differs from the model by .* expected at most 0.001; it begins at layer 8: ",
    ):
        export_onnx(network(), model, tmp_path / "model.onnx", feeds=[model.example(1)])


def test_large_weights_go_beside_the_file(small, network, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export, "LARGEST_FILE_BYTES", 100)
    model = small(network(), image=("batch", 3, 12, 12))
    made = export_onnx(model.module, model, tmp_path / "model.onnx", feeds=[model.example(1)])
    assert inspect_onnx(made.path)["external"] == ["model.onnx.data"]


class Windows(nn.Module):
    """Attention within windows: queries [batch, windows, heads, tokens, width], with or without a mask."""

    def __init__(self, mask: tuple[int, ...] | None) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.mask = None if mask is None else nn.Buffer(torch.randn(mask))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, 2, 4)).permute(3, 0, 1, 4, 2, 5)
        )  # x: [batch, windows, tokens, 8]
        attended = nn.functional.scaled_dot_product_attention(q, k[:, :1], v, self.mask)
        return attended.transpose(2, 3).flatten(3)


@pytest.mark.parametrize("mask", [None, (6, 6), (2, 6, 6), (3, 1, 6, 6), (1, 3, 2, 6, 6)])
def test_attention_of_more_than_four_dimensions(small, tmp_path, mask) -> None:
    model = small(Windows(mask), x=("batch", 3, 6, 8))
    made = export_onnx(model.module, model, tmp_path / "m.onnx", feeds=[model.example(n) for n in (1, 4)])
    assert len(made.parity) == 2 and max(parity.relative for parity in made.parity) < 1e-5


class OneHead(nn.Module):
    """Attention without a dimension for heads: queries [batch, tokens, width], or [tokens, width] of one sample."""

    def __init__(self, mask: tuple[int, ...] | None, batched: bool) -> None:
        super().__init__()
        self.qkv, self.batched = nn.Linear(8, 24), batched
        self.mask = None if mask is None else nn.Buffer(torch.randn(mask))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x if self.batched else x[0]).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, self.mask)
        return attended if self.batched else x + attended


@pytest.mark.parametrize(
    ("mask", "batched"),
    [(None, True), ((6, 6), True), ((1, 6, 6), True), (None, False), ((6, 6), False)],
)
def test_attention_of_fewer_than_four_dimensions(small, tmp_path, mask, batched) -> None:
    model = small(OneHead(mask, batched), x=("batch", 6, 8))
    made = export_onnx(model.module, model, tmp_path / "m.onnx", feeds=[model.example(n) for n in (1, 4)])
    assert len(made.parity) == 2 and max(parity.relative for parity in made.parity) < 1e-5
