"""Checkpoints of models in which a layer has become two."""

import json

import pytest
import torch
from torch import nn

from deploycompress.errors import StageFailed
from deploycompress.model import checkpoint
from deploycompress.model.lowrank import put, two_factors
from deploycompress.pruning.apply import apply
from deploycompress.pruning.discovery import find_groups

CODE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(24, 5)

    def forward(self, image):
        x = self.block(self.norm(self.conv(image)).relu())
        return self.head(x.mean((2, 3)))


def build():
    return Net()
"""


def factored(model):
    module = model.build()
    for path, rank in (("conv", 8), ("block.0", 12), ("head", 4)):
        put(module, path, two_factors(module.get_submodule(path), rank))
    return module


def outputs(model, module):
    with torch.no_grad():
        return model.call(module, model.example(3))["output"]


def test_two_factors_are_saved_and_loaded(user_model, tmp_path):
    model = user_model(CODE)
    module = factored(model)
    checkpoint.save(module, tmp_path / "kept", model)
    loaded = checkpoint.load(tmp_path / "kept", model)
    assert torch.equal(outputs(model, loaded), outputs(model, module))
    assert [type(p).__name__ for p in (loaded.conv, loaded.block[0], loaded.head)] == ["Sequential"] * 3
    assert loaded.block[0][0].stride == (2, 2) and loaded.head[0].bias is None
    document = json.loads((tmp_path / "kept" / "architecture.json").read_text())
    assert document["architecture"]["factors"][0] == {
        "path": "conv",
        "type": "torch.nn.modules.conv.Conv2d",
        "rank": 8,
    }


def test_they_are_pruned_like_any_two_layers(user_model, tmp_path):
    """Ranks are channels like others; what is saved afterwards is loaded again, and pruned again."""
    model = user_model(CODE)
    module = factored(model)
    for name in ("first", "second"):
        groups = find_groups(module, model).groups
        assert {"conv.0", "conv.1", "block.0.0", "block.0.1", "head.0"} <= {g.id for g in groups}
        kept = {g.id: torch.arange(g.width - 1) for g in groups}
        apply(module, groups, kept)
        checkpoint.save(module, tmp_path / name, model)
        loaded = checkpoint.load(tmp_path / name, model)
        assert torch.equal(outputs(model, loaded), outputs(model, module))
        module = loaded
    assert module.conv[0].out_channels == 6 and module.conv[1].out_channels == 14


def test_the_random_numbers_of_the_caller_go_on(user_model, tmp_path):
    model = user_model(CODE)
    checkpoint.save(factored(model), tmp_path / "kept", model)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    checkpoint.load(tmp_path / "kept", model)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "tail"}, "in two factors; the model has none there"),
        ({"path": "norm", "type": "torch.nn.modules.batchnorm.BatchNorm2d"}, "which is no plain layer"),
        ({"type": "torch.nn.modules.linear.Linear"}, "the model has a torch.nn.modules.conv.Conv2d there"),
        ({"rank": 17}, "the rank 17; it is at most 16"),
        ({"rank": 2**24}, "it is at most 16"),
        ({"rank": 7}, "holds conv.0.weight as|gives conv.0 sizes"),
        ({"rank": 0}, "is not an architecture"),
        ({"path": ""}, "is not an architecture"),
        ({"kernel": 1}, "is not an architecture"),
    ],
)
def test_a_document_that_does_not_fit(user_model, tmp_path, change, message):
    model = user_model(CODE)
    checkpoint.save(factored(model), tmp_path / "kept", model)
    path = tmp_path / "kept" / "architecture.json"
    document = json.loads(path.read_text())
    document["architecture"]["factors"][0] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(StageFailed, match=message):
        checkpoint.load(tmp_path / "kept", model)


def test_a_pair_that_no_factorisation_makes_is_not_kept(user_model, tmp_path):
    model = user_model(CODE)
    module = model.build()
    for pair in (
        (nn.Linear(24, 5), nn.ReLU()),
        (nn.Linear(24, 8, bias=False), nn.Linear(8, 5)),  # wider than any factor
        (nn.Linear(24, 4), nn.Linear(4, 5)),  # a bias in between
    ):
        module.head = nn.Sequential(*pair)
        with pytest.raises(StageFailed, match="cannot be kept as a checkpoint: module head"):
            checkpoint.save(module, tmp_path / "kept", model)
