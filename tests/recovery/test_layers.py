"""Layers: what is seen of a network, which pairs are found, what is refused, and that nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploycompress.errors import ConfigError
from deploycompress.recovery.layers import trace, watched
from deploycompress.recovery.pairing import named_pairs, pairs_by_path


class Block(nn.Module):
    def __init__(self, width, inner, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x + self.conv2(self.bn1(self.conv1(x))))


class Staged(nn.Module):
    """Three stages of two blocks at 8, 4 and 2 pixels; ``inner``: channels inside a block."""

    def __init__(self, inner=4, width=4, stages=3):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        for number in range(stages):
            pool = [nn.AvgPool2d(2)] if number else []
            blocks = [*pool, Block(width, inner), Block(width, inner)]
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
        self.stages = stages
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        for number in range(self.stages):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.fc(x.mean((2, 3)))


class TokenBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.mix(self.norm(x))


class Tokens(nn.Module):
    """Six blocks on [batch, 5 tokens, width]."""

    def __init__(self, width=4):
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(6))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


IMAGE, SEQUENCE = torch.randn(2, 1, 8, 8), torch.randn(2, 5, 1)


def layers(net, x=IMAGE):
    return trace(net, lambda: {"output": net(x)})


def test_stages_end_where_their_size_does():
    """The last layer at 8 and at 4 pixels, and of those at 2; blocks and inner layers are passed over."""
    pairs = pairs_by_path(layers(Staged(inner=2)), layers(Staged(inner=6)))
    assert [pair.student for pair in pairs] == ["layer1", "layer2", "layer3"]
    assert all(pair.student == pair.teacher for pair in pairs)


def test_widths_may_differ_and_the_networks_own_output_is_no_feature():
    student, teacher = layers(Staged(width=3)), layers(Staged(width=5))
    assert [pair.student for pair in pairs_by_path(student, teacher)] == ["layer1", "layer2", "layer3"]
    assert (student["layer2"].width, teacher["layer2"].width) == (3, 5) and "fc" not in student


def test_a_network_of_one_size_gives_some_of_its_blocks():
    pairs = [pair.student for pair in pairs_by_path(layers(Tokens(), SEQUENCE), layers(Tokens(6), SEQUENCE))]
    assert [path for path in pairs if path.startswith("blocks.")] == [
        "blocks.0",
        "blocks.2",
        "blocks.3",
        "blocks.5",
    ]
    assert layers(Tokens(), SEQUENCE)["blocks.0"].axis == 2


def test_what_has_another_batch_is_no_feature():
    """A learned position is the same for every sample."""

    class Positioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.place, self.head = nn.Linear(1, 4), nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head((self.tokens(x) + self.place(torch.arange(5)[None])).mean(1))

    assert set(layers(Positioned(), SEQUENCE)) == {"tokens"}


def test_a_flat_network_gives_the_last_layer_of_every_size():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )
    assert [pair.student for pair in pairs_by_path(layers(net), layers(net))] == ["1", "2", "3"]
    assert [pair.student for pair in pairs_by_path(layers(net), layers(net), positions=True)] == ["1", "2"]


def test_the_width_is_found_again_after_a_permutation():
    """Channels last inside, as in ConvNeXt: a norm that moves them there, and a block that moves them back."""

    class Permuting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            return x + self.mix(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    class FirstNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net = nn.Sequential(
        nn.Conv2d(1, 6, 1), FirstNorm(6), Permuting(), Permuting(), nn.Flatten(), nn.Linear(384, 3)
    )
    found = layers(net)
    assert {path: found[path].axis for path in ("0", "1", "2", "2.norm", "2.mix")} == {
        "0": 1, "1": 1, "2": 1, "2.norm": 3, "2.mix": 3,
    }  # fmt: skip
    assert found["2.mix"].inside and found["2"].block and not found["2"].inside


def test_what_lies_inside_a_block_is_passed_over_where_it_runs_last_at_its_size():
    """The first half of the second block still has the size of the first stage."""
    narrows = nn.Sequential(nn.Conv2d(4, 9, 1), nn.ReLU(), nn.Conv2d(9, 4, 3, stride=2, padding=1))
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), narrows, nn.Flatten(), nn.Linear(64, 3))
    assert [pair.student for pair in pairs_by_path(layers(net), layers(net))] == ["1", "2", "3"]


def test_a_layer_that_runs_twice_is_no_feature():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.one, self.two = nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.two(self.act(self.one(self.act(x))))

    net = Shared()
    assert set(trace(net, lambda: {"output": net(torch.randn(2, 4))})) == {"one"}


def test_pairs_by_name_are_checked():
    student, teacher = layers(Staged()), layers(Staged(width=6))
    found = named_pairs({"layer1.0": "layer1", "layer3": "layer3.2"}, student, teacher)
    assert [(p.student, p.teacher) for p in found] == [("layer1.0", "layer1"), ("layer3", "layer3.2")]
    with pytest.raises(
        ConfigError, match=r"the student has no layer 'layr1' .* did you mean 'layer1'\? It has"
    ):
        named_pairs({"layr1": "layer1"}, student, teacher)
    with pytest.raises(ConfigError, match=r"the teacher has no layer 'fc2' that runs once"):
        named_pairs({"layer1": "fc2"}, student, teacher)
    with pytest.raises(
        ConfigError, match=r"layer1 of the student gives out \[2, 4, 8, 8\] and layer2 of the teach"
    ):
        named_pairs({"layer1": "layer2"}, student, teacher)


def test_networks_without_a_common_layer_are_told_so():
    with pytest.raises(
        ConfigError, match=r"no layer of the student has the path .* the student has stem \[2, 4, 8,"
    ):
        pairs_by_path(layers(Staged()), {})


def test_no_hook_stays_behind():
    net = Staged()
    layers(net)
    with watched(net, ["layer1", "layer1", "layer2.0"]) as seen:
        net(IMAGE)
    assert set(seen) == {"layer1", "layer2.0"} and seen["layer1"].shape == (2, 4, 8, 8)
    assert not any(module._forward_hooks for module in net.modules())


def test_features_of_half_precision_are_compared_in_float32():
    net = Staged()
    with torch.autocast("cpu", torch.bfloat16), watched(net, ["layer1.0.conv1"]) as seen:
        net(IMAGE)
    assert seen["layer1.0.conv1"].dtype == torch.float32
