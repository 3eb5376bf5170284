"""A probe through a real command line: every hop, and every way to fail."""

import json

import pytest
from click.testing import CliRunner

from deploycompress.cli import main
from deploycompress.commands.probe import command

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.scale = nn.Parameter(torch.full((32,), 1e-9))  # hides all that is before it until it is trained
        self.head = nn.Linear(32, 5)

    def forward(self, image):
        x = torch.relu(self.b(torch.relu(self.norm(self.a(image)))))
        return self.head(x.mean((2, 3)) * self.scale + 1)


class Deaf(Net):
    def forward(self, image):
        return super().forward(image) * 0 + 1


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(x)


class Broken(Net):
    def forward(self, image):
        return self.head(image)
"""
HOPS = ["prune", "checkpoint", "export", "simplify", "quantize", "benchmark"]


@pytest.fixture
def net(tmp_path):
    (tmp_path / "probed.py").write_text(NET)
    return str(tmp_path / "probed.py")


def probe(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["probe", *arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_every_hop_of_a_small_network(net, tmp_path, capsys):
    file = tmp_path / "found.json"
    code, out, _ = probe(
        capsys, f"{net}:Net", "--input", "image=1x3x8x8", "--macs", "60%", "--json", str(file)
    )
    found = json.loads(file.read_text())
    assert code == 0, out
    assert list(found) == [
        "build", "ok", "reached", "hops", "macs_ratio", "params_ratio", "latency_ratio", "unpruned", "environment",
    ]  # fmt: skip
    assert found["ok"] and found["reached"] and list(found["hops"]) == HOPS
    assert all(hop["ok"] and hop["error"] is None and hop["seconds"] >= 0 for hop in found["hops"].values())
    assert 0.3 < found["macs_ratio"] <= 0.6 and 0.2 < found["params_ratio"] < 0.8
    assert found["latency_ratio"] > 0
    assert found["unpruned"] == [{"layer": "head", "reason": "its channels are the model's outputs"}]
    assert found["hops"]["quantize"]["quantize_cosine"] > 0.5
    assert found["hops"]["benchmark"]["int8_p50_ms"] > 0
    assert found["environment"]["libraries"]["torch"]
    assert [line.split()[1] for line in out.splitlines() if line.startswith("ok")] == HOPS
    assert "left whole: head: its channels are the model's outputs" in out


def test_a_hop_that_fails_stops_those_that_need_it(net, tmp_path, capsys):
    file = tmp_path / "found.json"
    code, out, err = probe(capsys, f"{net}:Broken", "--input", "image=1x3x8x8", "--json", str(file))
    found = json.loads(file.read_text())
    assert code == 4
    assert not found["ok"] and found["macs_ratio"] is None and found["latency_ratio"] is None
    assert found["hops"]["prune"]["error"].startswith("RuntimeError: ")
    assert found["hops"]["benchmark"]["error"] == "not run: it needs simplify, which failed"
    assert "Broken: prune: RuntimeError" in err and "failed  prune" in out


def test_an_output_that_does_not_depend_on_the_input_is_a_failure(net, capsys):
    code, _, err = probe(capsys, f"{net}:Deaf", "--input", "image=1x3x8x8")
    assert code == 4
    assert "output output does not vary with the input, so comparing it proves nothing" in err


def test_a_model_with_nothing_to_prune_is_not_reached(net, tmp_path, capsys):
    file = tmp_path / "found.json"
    code, _, err = probe(capsys, f"{net}:Whole", "--input", "x=1x8", "--json", str(file))
    found = json.loads(file.read_text())
    assert code == 4
    assert found["ok"] and not found["reached"] and found["macs_ratio"] == 1
    assert "the target is not reached: macs 100.0% (target 50.0%); 1 layers are left whole" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "image"], "received 'image'; expected NAME=SHAPE[:DTYPE[:MAX]]"),
        (["--input", "image=1x3x"], "received 'image=1x3x'"),
        (["--input", "ids=1x8:float33"], "'ids=1x8:float33': dtype"),
        (["--input", "ids=1x8:int64:0"], "'ids=1x8:int64:0': max"),
        (["--input", "a=0x3"], "one positive number for all inputs; received a 0"),
        (["--input", "a=1x3", "--input", "b=2x3"], "received a 1, b 2"),
        (["--input", "a=1x3", "--input", "a=1x3"], "input 'a' is given twice"),
        (["--input", "a=1x3", "--macs", "150%"], "expected a share above 0 and at most 100%"),
        (["--input", "a=1x3", "--macs", "some"], "received 'some'"),
        (["--input", "a=1x3", "--macs", "50%", "--ratio", "0.5"], "--macs and --ratio exclude each other"),
        ([], "Missing option '--input'"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    ended = CliRunner().invoke(command, ["torchvision:resnet18", *arguments])
    assert ended.exit_code == 2
    assert message in " ".join(ended.output.replace("│", " ").split())


def test_a_model_that_is_not_there_is_a_mistake_and_not_a_failed_hop(net, capsys):
    code, _, err = probe(capsys, f"{net}:Nte", "--input", "image=1x3x8x8")
    assert code == 2 and "has no 'Nte'" in err
    code, _, err = probe(capsys, "torchvision:resnet19", "--input", "image=1x3x8x8")
    assert code == 2 and "unknown torchvision model 'resnet19'" in err
