"""What ``inspect`` finds in small networks, and how it says it; one of them is really measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from deploycompress.cli import main
from deploycompress.commands.inspecting import inspect_model
from deploycompress.commands.inspection import Inspection
from deploycompress.commands.inspection_cells import Unit, name, names, share
from deploycompress.commands.inspection_text import text
from deploycompress.config.schema import InputSpec, TargetConfig
from deploycompress.devices.profiles import NotProfiled

NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.expand, self.dw = nn.Conv2d(width, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project = nn.Conv2d(32, width, 1)

    def forward(self, x):
        return x + self.project(torch.relu(self.dw(torch.relu(self.expand(x)))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.block, self.head = Block(16), nn.Linear(16, 5)

    def forward(self, image):
        return self.head(self.block(torch.relu(self.norm(self.stem(image)))).mean((2, 3)))


class Broken(Net):
    def forward(self, image):
        return self.head(image)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(24, 3, 32, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))
"""
LAYERS = ["stem", "block.expand", "block.dw", "block.project", "head"]
MACS = [27 * 16 * 64, 16 * 32 * 64, 9 * 32 * 64, 32 * 16 * 64, 16 * 5]
PARAMS = [27 * 16, 17 * 32, 10 * 32, 33 * 16, 17 * 5]


@pytest.fixture
def net(tmp_path):
    (tmp_path / "inspected.py").write_text(NET)
    return str(tmp_path / "inspected.py")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def counted(net, kind="Net", shape=(3, 16, 16), **more) -> Inspection:
    inputs = {"image" if kind == "Net" else "x": InputSpec(shape=("batch", *shape))}
    return inspect_model(f"{net}:{kind}", inputs, 1, None, None, lambda done, message: None, **more)


def test_a_network_is_measured_layer_by_layer_and_as_a_whole(net, tmp_path, capsys):
    file = tmp_path / "found.json"
    code, out, err = run(capsys, f"{net}:Net", "--input", "image=2x3x16x16", "--json", str(file))
    assert code == 0 and "\x1b" not in out, err
    found = json.loads(file.read_text())
    assert list(found) == [
        "build", "inputs", "target", "unpruned_totals", "layers", "groups", "blocks", "unpruned", "notes",
        "environment",
    ]  # fmt: skip
    assert found["inputs"] == {"image": {"shape": [2, 3, 16, 16], "dtype": "float32", "max": None}}
    assert found["target"]["threads"] == 1 and found["target"]["batch_size"] == 2
    assert all(note.startswith("While the whole model was measured: ") for note in found["notes"])
    totals, layers = found["unpruned_totals"], found["layers"]
    assert [layer["layer"] for layer in layers] == LAYERS
    assert [layer["macs"] for layer in layers] == MACS and totals["macs"] == sum(MACS)
    assert all(layer["latency_ms"] >= 0 for layer in layers)
    assert (
        totals["layers_ms"] == pytest.approx(sum(layer["latency_ms"] for layer in layers))
        and totals["layers_ms"] > 0
    )
    assert totals["latency_ms"] > 0
    (block,) = found["blocks"]
    inside = [layer for layer in layers if layer["layer"] in block["layers"]]
    assert block["latency_ms"] == pytest.approx(sum(layer["latency_ms"] for layer in inside))
    assert "fp32 in onnxruntime on 1 thread" in out and "a batch of 2" in out
    assert max(map(len, out.splitlines()[1:])) <= 100


def test_what_is_counted(net):
    found = counted(net)
    assert [layer.params for layer in found.layers] == PARAMS
    assert found.whole.params == sum(PARAMS) + 32 and found.whole.latency_ms is None
    by_name = {layer.layer: layer for layer in found.layers}
    assert by_name["stem"].group_in == () and by_name["stem"].group_out == ("stem",)
    assert by_name["block.dw"].group_in == by_name["block.dw"].group_out == ("block.expand",)
    assert by_name["head"].group_in == ("stem",) and by_name["head"].group_out == ()
    stem, inner = found.groups
    assert (stem.id, stem.layers, stem.grid, stem.heads) == ("stem", ("stem", "block.project"), (8, 16), None)
    assert stem.macs == sum(MACS) - MACS[2] and inner.macs == sum(MACS[1:4])
    (block,) = found.blocks
    assert (block.id, block.macs, block.params) == ("block", sum(MACS[1:4]), sum(PARAMS[1:4]))
    assert [(u.layer, u.reason) for u in found.unpruned] == [("head", "its channels are the model's outputs")]


def test_heads_and_products_that_are_in_no_layer(net):
    found = counted(net, "Attention", (6, 24))
    (heads,) = [group for group in found.groups if group.heads is not None]
    assert heads.heads == 3 and heads.grid[0] == 8 and heads.width == 24
    products = 2 * 6 * 6 * 24
    assert found.whole.macs - sum(layer.macs for layer in found.layers) == products
    assert heads.macs == sum(x.macs for x in found.layers if "self_attn" in x.layer) + products
    said = text(found, "latency", None)
    assert "1–3 heads" in said and "not in layers" in said and "Nothing was measured" in said


def test_the_rows_that_matter_and_the_sum_of_the_others(net):
    found = counted(net)
    said = text(found, "macs", None).splitlines()
    title = next(line for line in said if line.startswith("Layers"))
    assert title == "Layers, the 4 of 5 that make up 95 % of the MACs"
    shown = said[said.index(title) + 3 :]
    assert [line.split()[0] for line in shown[:4]] == ["block.expand", "block.project", "stem", "block.dw"]
    assert shown[0].split() == ["block.expand", "1x1", "16", "32", "1→2", "32.8", "29.3", "544", "28.0"]
    assert shown[3].split()[1:3] == ["3x3", "dw"]
    assert shown[4].split() == ["1", "others", "0.1", "0.1", "85", "4.4"]
    assert shown[5].split() == ["not", "in", "layers", "0.0", "0.0", "32", "1.6"]
    assert shown[6].split() == ["the", "model", "111.7", "100.0", "1941", "100.0"]
    limited = text(found, "order", 2)
    assert "Layers, the 2 of 5 with most of the MACs" in limited and "3 others" in limited
    rows = [line.split()[0] for line in limited.splitlines() if "→" in line]
    assert rows == ["block.expand", "block.project"]
    assert text(found, "params", 1).count("→") == 1 and "of the parameters" in text(found, "params", 1)
    assert "head (0.1 % of the MACs): its channels are the model's outputs" in limited


def test_what_layers_and_model_have_to_do_with_each_other_is_said(net):
    found = counted(net)
    timed = replace(
        found,
        target=TargetConfig(),
        layers=tuple(replace(layer, latency_ms=0.2) for layer in found.layers),
        whole=replace(found.whole, layers_ms=1.0, latency_ms=1.25),
    )
    more = text(timed, "latency", None)
    assert "Not in layers, 0.250 ms: activations, pooling" in more
    assert [line.split()[-2:] for line in more.splitlines() if line.startswith("not in")] == [
        ["0.250", "20.0"]
    ]
    less = text(replace(timed, whole=replace(timed.whole, latency_ms=0.8)), "latency", None)
    assert "take 0.200 ms more than the whole model" in " ".join(less.split())
    assert [line.split()[-2:] for line in less.splitlines() if line.startswith("not in")] == [
        ["−0.200", "−25.0"]
    ]
    alone = text(replace(timed, whole=replace(timed.whole, latency_ms=None)), "latency", None)
    assert "Shares of the time are of all layers together." in alone
    assert [line.split()[-2:] for line in alone.splitlines() if line.startswith("the model")] == [["–", "–"]]


def test_a_runtime_that_does_not_tell_leaves_the_counting(net, capsys, monkeypatch):
    """The refusal of a device whose runtime has no profiler, in place of one; the whole model's file is refused too."""
    from deploycompress.commands import inspecting
    from deploycompress.errors import StageFailed

    def refuses(*arguments):
        raise NotProfiled("latency table on local in mine was not profiled: it has no profiler")

    class Refuses:
        def __init__(self, *arguments):
            raise StageFailed("the model does not export to ONNX: reasons")

    monkeypatch.setattr(inspecting, "measured_table", refuses)
    monkeypatch.setattr(inspecting, "WholeModels", Refuses)
    code, out, _ = run(capsys, f"{net}:Net", "--input", "image=1x3x16x16")
    assert code == 0
    assert "No times of layers: latency table on local in mine was not profiled: it has no profiler" in out
    assert "The whole model was not measured: the model does not export to ONNX: reasons" in out
    assert "the 4 of 5 that make up 95 % of the MACs" in out and "time" not in out.splitlines()[3]


def test_cells():
    assert [Unit.of(total).name for total in (99, 99_999, 1e5, 1e8, 1.8e9, 2e11)] == [
        "",
        "",
        "k",
        "M",
        "M",
        "G",
    ]
    assert Unit.of(2e8)(-1e3) == "0.0" and Unit.of(2e8)(-1e6) == "−1.0" and Unit.of(5)(None) == "–"
    assert share(1, 0) == "–" and share(0.0, 3) == "0.0" and share(1, 8) == "12.5"
    long = "encoder.layer.11.attention.self.query"
    assert name("") == "the model" and len(name(long)) == 24 and name(long).endswith("attention.self.query")
    assert names(["a", "b"]) == "a, b" and names(["stem"] * 9) == "stem, stem, stem, +6"
    assert len(names([long] * 12)) <= 24 and names([long] * 12).endswith("self.query, +11")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["Net", "--input", "image"], 2, "received 'image'; expected NAME=SHAPE[:DTYPE[:MAX]]"),
        (["Net"], 2, "Missing option '--input'"),
        (["Net", "--input", "image=1x3x16x16", "--no-latency", "--sort", "latency"], 2, "contradict each other"),
        (["Net", "--input", "image=1x3x16x16", "--precision", "fp8"], 2, "'fp8' is not one of 'fp32', 'int8'"),
        (["Net", "--input", "image=1x3x16x16", "--runtime", "onnx"], 2, "unknown runtime 'onnx'; known: onnxruntime"),
        (["Nte", "--input", "image=1x3x16x16"], 2, "has no 'Nte'"),
        (["Net", "--input", "image=1x3x16x16", "--json", "-"], 2, "received '-'; expected the name of a file"),
        (["Net", "--input", "image=1x3x16x16", "--json", "no/such/x.json"], 2, "there is no folder no/such to write x.json"),
        (["Net", "--input", "image=1x3x16x16", "--json", "."], 2, ". is a folder; expected the name of a file"),
        (["Broken", "--input", "image=1x3x8x8"], 2, "the forward pass on random inputs failed: RuntimeError: "),
    ],
)  # fmt: skip
def test_mistakes(net, capsys, arguments, code, message):
    kind, *others = arguments
    ended, _, err = run(capsys, f"{net}:{kind}", *others)
    assert ended == code
    assert message in " ".join(err.replace("│", " ").split())
