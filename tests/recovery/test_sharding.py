"""A teacher that does not fit one device: the same answers, with its layers in memory and on disk."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.errors import EnvironmentMissing
from deploycompress.examples.resnet import build
from deploycompress.recovery.sharding import shard
from deploycompress.recovery.teachers import NetworkTeacher


class Named:
    def call(self, module, inputs):
        return {"logits": module(inputs["x"])}


class Attentive(nn.Module):
    """Blocks that use a layer's weight without calling the layer, and a head that is tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


def convolutional():
    net = build(width=8, classes=3)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
    return net, torch.randn(2, 1, 16, 16)


def attentive():
    return Attentive(), torch.randint(50, (2, 7))


@pytest.mark.parametrize(
    ("made", "share", "places"),
    [
        (convolutional, 0.9, {"cpu", "disk"}),
        (convolutional, 0.4, {"disk"}),  # less than its largest block, which has to be loaded
        (attentive, 0.9, {"cpu", "disk"}),
    ],
)
def test_the_answers_are_those_of_the_whole_network(made, share, places, tmp_path):
    torch.manual_seed(0)
    net, x = made()
    net.eval()
    whole = NetworkTeacher(Named(), copy.deepcopy(net))
    found = shard(net, {"cpu": share * sum(p.nbytes for p in net.parameters())}, tmp_path)
    assert set(found) == places and all(found.values())
    assert sum(f.stat().st_size for f in tmp_path.glob("*.dat")) == found["disk"]
    apart = [name for name, p in net.named_parameters() if p.is_meta]
    assert apart and (len(apart) < len(list(net.parameters()))) == ("cpu" in places)

    teacher, batch = NetworkTeacher(Named(), net), Batch({"x": x}, None, len(x))
    layers = teacher.layers(batch)
    assert layers == whole.layers(batch)
    for _ in range(2):  # what was loaded for the first answer is there again for the second
        ours, theirs = (t.answer(batch, list(layers)) for t in (teacher, whole))
        assert torch.equal(ours.main, theirs.main) and not ours.main.is_inference()
        assert all(torch.equal(ours.features[path], theirs.features[path]) for path in layers)
    assert [name for name, p in net.named_parameters() if p.is_meta] == apart
    assert not any(p.requires_grad for p in net.parameters())


def test_without_limits_it_takes_what_is_free(tmp_path):
    net, x = convolutional()
    before = net.eval()(x)
    assert set(shard(net, None, tmp_path)) != {"disk"}
    assert torch.allclose(net(x), before, atol=1e-5)


def test_an_accelerator_that_is_not_there_is_named(tmp_path):
    net, _ = convolutional()
    with pytest.raises(
        EnvironmentMissing, match=r"names the accelerator 99, and this machine has \d+; expec"
    ):
        shard(net, {"99": 1e9, "cpu": 1e9}, tmp_path)
