"""What labels show that travel through a forward pass, on the ways in which real networks move channels."""

import pytest
import torch
from torch import nn

from deploycompress.pruning import screening
from deploycompress.pruning.apply import apply
from deploycompress.pruning.attention.trial import find_attention
from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.discovery import find_groups, producing_layers
from deploycompress.pruning.groups import ChannelGroup, Member, on_grid
from deploycompress.pruning.labelled_groups import labelled_groups
from deploycompress.pruning.labels import FREE, Ties, along, tidy, varying
from deploycompress.pruning.masked import masked, normalises_weight
from deploycompress.pruning.operator_rules import Operators
from deploycompress.pruning.screening import screen

F = nn.functional
IMAGE = (3, 8, 8)


def found(model):
    result = find_groups(model.build(), model)
    groups = {g.id: (g.width, sorted({m.layer for m in g.members})) for g in result.groups}
    return groups, {u.layer: u.reason for u in result.unpruned}


class Shuffle(nn.Module):
    """ShuffleNet V2: one half passes by, the halves are then interleaved."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(self._block() for _ in range(3))
        self.last, self.head = nn.Conv2d(32, 24, 1), nn.Linear(24, 5)

    def _block(self):
        spatial = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        return nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), spatial, nn.Conv2d(16, 16, 1))

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, block(right)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Upscaled(nn.Module):
    """Sub-pixel convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(F.relu(self.b(F.pixel_shuffle(self.a(x), 2))).mean((2, 3)))


class Mixer(nn.Module):
    """An MLP-Mixer's block: a linear layer over positions between two transpositions."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        self.norm = nn.LayerNorm(16)
        self.mix, self.unmix = nn.Linear(16, 24), nn.Linear(24, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.unmix(F.gelu(self.mix(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class Scaled(nn.Module):
    """ConvNeXt's block: channels last in the middle, a bare layer scale."""

    def __init__(self):
        super().__init__()
        self.stem, self.spatial = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16, 1, 1), 1e-6))
        self.register_buffer("offset", torch.randn(1, 16, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x) + self.offset
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head((x + self.scale * y).mean((2, 3)))


class SplitAttention(nn.Module):
    """ResNeSt: a softmax over the radix weighs two halves of one grouped convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 32, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.conv(F.relu(self.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w)
        weight = self.excite(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        weight = weight.view(n, 2, c // 2, 1, 1).softmax(1)
        return self.head((x * weight).sum(1).mean((2, 3)))


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation with a gain (NFNet)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x):
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (deviation + 1e-5) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = StandardisedConv2d(3, 16, 3), StandardisedConv2d(16, 24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Gated(nn.Module):
    """One half of a layer's outputs gates the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        value, gate = self.a(x).chunk(2, 1)
        return self.head(self.b(value * gate.sigmoid()).mean((2, 3)))


class FeaturePyramid(nn.Module):
    """Several outputs by name; one layer reads two levels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.lateral_a, self.lateral_b = nn.Conv2d(16, 8, 1), nn.Conv2d(32, 8, 1)
        self.hidden, self.shared = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        fine = F.relu(self.a(x))
        coarse = F.relu(self.b(fine))
        top = self.lateral_b(coarse)
        low = self.lateral_a(fine) + F.interpolate(top, scale_factor=2.0)
        return {name: self.shared(F.relu(self.hidden(y))) for name, y in (("low", low), ("top", top))}


class Neighbours(nn.Module):
    """ECA: a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.along, self.b = nn.Conv2d(3, 16, 1), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.a(x)
        weight = self.along(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        return self.head(F.relu(self.b(x * weight)).mean((2, 3)))


class Blurred(nn.Module):
    """A fixed depthwise filter whose size follows the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Linear(8, 5)
        self.register_buffer("filter", torch.ones(1, 1, 3, 3) / 9)

    def forward(self, x):
        x = F.pad(self.a(x), (1, 1, 1, 1), mode="reflect")
        x = F.conv2d(x, self.filter.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class ClassToken(nn.Module):
    """A token before those of the image, and learnt positions; there are as many tokens as channels."""

    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 17, 2, stride=2), nn.Parameter(torch.randn(1, 1, 17))
        self.position = nn.Parameter(torch.randn(1, 17, 17))
        self.up, self.down, self.head = nn.Linear(17, 32), nn.Linear(32, 17), nn.Linear(17, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head((x + self.down(F.gelu(self.up(x))))[:, 0])


class Uncalled(nn.Module):
    """Layers that lend their parameters: their module multiplies with these itself, on padded images."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Linear(16, 24), nn.Linear(24, 20, bias=False)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.pad(self.a(x).permute(0, 2, 3, 1), (0, 0, 0, 3, 0, 2))
        x = F.relu(F.linear(x, self.b.weight, self.b.bias)) + x.new_zeros(x.shape[1:3]).unsqueeze(-1)
        return self.head(F.relu(x.flatten(1, 2) @ self.c.weight.t()).mean(1))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            ClassToken,
            {"patch": (17, ["down", "head", "patch", "position", "token", "up"]), "up": (32, ["down", "up"])},
        ),
        (Uncalled, {"a": (16, ["a", "b"]), "b": (24, ["b", "c"]), "c": (20, ["c", "head"])}),
        (Upscaled, {"a": (8, ["a", "b"]), "b": (16, ["b", "head"])}),
        (
            Mixer,
            {
                "patch": (16, ["down", "head", "norm", "patch", "up"]),
                "mix": (24, ["mix", "unmix"]),
                "up": (32, ["down", "up"]),
            },
        ),
        (
            Scaled,
            {
                "stem": (16, ["down", "head", "norm", "offset", "scale", "spatial", "stem", "up"]),
                "up": (32, ["down", "up"]),
            },
        ),
        (
            SplitAttention,
            {
                "stem": (16, ["conv", "stem"]),
                "conv": (16, ["conv", "excite", "head", "squeeze"]),
                "squeeze": (8, ["excite", "squeeze"]),
            },
        ),
        (Standardised, {"a": (16, ["a", "b"]), "b": (24, ["b", "head"])}),
        (Gated, {"a": (16, ["a", "b"]), "b": (16, ["b", "head"])}),
        (
            FeaturePyramid,
            {
                "a": (16, ["a", "b", "lateral_a"]),
                "b": (32, ["b", "lateral_b"]),
                "lateral_a": (8, ["hidden", "lateral_a", "lateral_b"]),
                "hidden": (16, ["hidden", "shared"]),
            },
        ),
        (Blurred, {"a": (16, ["a", "b"]), "b": (8, ["b", "head"])}),
    ],
)
def test_channels_are_followed_through(given, make, expected):
    groups, _ = found(given(make, IMAGE))
    assert groups == expected


def test_a_shuffled_stream_stays_and_the_blocks_are_pruned(given):
    groups, unpruned = found(given(Shuffle, IMAGE))
    assert set(groups) == {"blocks.0.0", "blocks.1.0", "blocks.2.0", "last"}
    assert groups["blocks.0.0"] == (16, ["blocks.0.0", "blocks.0.1", "blocks.0.2", "blocks.0.3"])
    assert "pruned and masked differ" in unpruned["stem"]


def test_neighbours_along_the_channels_keep_them_whole(given):
    groups, unpruned = found(given(Neighbours, IMAGE))
    assert groups == {"b": (24, ["b", "head"])}
    assert unpruned["a"] == "along mixes neighbours among them"


def test_a_channel_at_several_positions_of_the_layer_that_makes_it(given):
    model = given(Gated, IMAGE)
    module = model.build()
    group = next(g for g in find_groups(module, model).groups if g.id == "a")
    made = next(m for m in group.members if m.layer == "a")
    assert made.at(torch.tensor([3])).tolist() == [3, 19]
    costs = WidthCosts(module, [group], model)
    apply(module, [group], {"a": torch.arange(4)})
    assert module.a.out_channels == 8 and module.b.in_channels == 4
    assert costs.at({"a": 4})["params"] == count(module, model)["params"]


def test_a_standardised_weight_is_standardised_over_what_remains(given):
    model = given(Standardised, IMAGE)
    module = model.build()
    assert normalises_weight(module.b) and not normalises_weight(nn.Conv2d(4, 4, 1))
    groups = find_groups(module, model).groups
    kept = {"a": torch.arange(0, 16, 2), "b": torch.arange(8)}
    expected = model.call(masked(module, groups, kept), model.example(3))["output"]
    foreseen = WidthCosts(module, groups, model).at({"a": 8, "b": 8})
    apply(module, groups, kept)
    assert foreseen["macs"] == count(module, model)["macs"] == 27 * 8 * 36 + 72 * 8 * 16 + 40
    assert torch.allclose(model.call(module, model.example(3))["output"], expected, atol=1e-5)
    assert module.b.gain.shape == (8, 1, 1, 1)


def test_a_layer_whose_channels_two_others_make_is_in_the_groups_of_both(given):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = nn.Conv2d(3, 24, 1)
            self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
            self.head = nn.Linear(24, 5)

        def forward(self, x):
            x = self.whole(x) + torch.cat([self.left(x), self.right(x)], 1)
            return self.head(F.relu(x).mean((2, 3)))

    groups, _ = found(given(Sum, IMAGE))
    assert groups == {"left": (8, ["head", "left", "whole"]), "right": (16, ["head", "right", "whole"])}


def test_one_group_that_does_not_work_costs_few_trials(given, monkeypatch):
    class Many(nn.Sequential):
        def __init__(self):
            super().__init__(*(nn.Linear(8, 8, bias=False) for _ in range(17)))

    model = given(Many, (8,))
    module = model.build()
    roots = [name for name, _ in producing_layers(module)]
    groups, _ = labelled_groups(module, model, roots, find_attention(module, model))
    assert len(groups) == 16
    bad = groups[5]
    wrong = tuple(
        m if m.axis == "out" else Member(m.layer, "in", m.channels, m.positions.flip(0)) for m in bad.members
    )
    groups[5] = ChannelGroup(bad.id, bad.width, wrong, bad.segments)
    trials = []
    monkeypatch.setattr(screening, "try_out", lambda *a, real=screening.try_out: trials.append(1) or real(*a))
    good, failed = screen(module, model, groups)
    assert [u.layer for u in failed] == ["5"] and failed[0].reason.startswith("pruned and masked differ")
    assert [g.id for g in good] == [str(i) for i in range(16) if i != 5]
    assert len(trials) <= 11


def test_a_reshape_that_fits_half_by_chance_is_refused(given):
    class Chance(nn.Module):
        """Of 16 channels; it works with 8 too."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 5)

        def forward(self, x):
            x = self.a(x)
            return self.head(F.relu(self.b(x.view(len(x), -1, 8).flatten(1))))

    groups, unpruned = found(given(Chance, (8,)))
    assert groups == {"b": (24, ["b", "head"])}
    assert unpruned["a"].startswith("the forward pass fails when it is pruned")


def test_gates_of_one_channel_do_not_pile_up_along_a_stream(given, monkeypatch):
    class Focal(nn.Module):
        """FocalNet's modulation: what each block adds is weighed by a channel of its own."""

        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)
            self.blocks = nn.ModuleList(nn.Conv2d(16, 17, 1) for _ in range(4))

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                y = block(x)
                x = x + y[:, 1:] * y[:, :1] + y[:, 1:]
            return self.head(x.mean((2, 3)))

    layers = []
    real = Operators.set
    monkeypatch.setattr(Operators, "set", lambda *a: layers.append(len(a[2])) or real(*a))
    groups, unpruned = found(given(Focal, IMAGE))
    assert groups == {"stem": (16, ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head", "stem"])}
    assert set(unpruned) == {"blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"}
    assert max(layers) <= 3


def test_labels_that_do_not_vary_take_no_room():
    labels = along(torch.tensor([3, 4]), 1, (2, 2, 5, 5))
    assert varying(labels) == {1}
    copied = tidy(labels.contiguous())
    assert varying(copied) == {1} and torch.equal(copied, labels)


def test_ties_join_what_meets_and_leave_what_is_free():
    ties = Ties()
    a, b, c = ties.new(2), ties.new(2), ties.new(1)
    ties.tie(a, torch.tensor([int(b[0]), FREE]))
    ties.freeze(c, "never")
    classes, frozen = ties.classes()
    assert classes[a[0]] == classes[b[0]] and len({classes[i] for i in (FREE, a[0], a[1], b[1], c[0])}) == 5
    assert frozen == {int(classes[c[0]]): "never"}


def test_gathering_joins_over_the_other_dimensions():
    ties = Ties()
    labels = ties.new(6)
    assert ties.gather(labels.view(2, 3), 0).shape == (2,)
    classes, _ = ties.classes()
    assert len(set(classes[labels[:3]])) == 1 and len(set(classes[labels])) == 2


ZOO = ["torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"]
ZOO += [
    "timm:test_resnet",
    "timm:test_nfnet",
    "timm:test_efficientnet",
    "timm:test_byobnet",
    "timm:test_convnext",
]


@pytest.mark.parametrize("build", ZOO)
def test_a_sample_of_the_zoo_can_lose_half_of_its_macs(build):
    from deploycompress.config.schema import InputSpec, ModelConfig
    from deploycompress.model.source import SourceModel

    pytest.importorskip(build.partition(":")[0])
    spec = InputSpec(shape=("batch", 3, 96, 96))
    model = SourceModel(ModelConfig(build=build, args={}, weights=None, inputs={"x": spec}), 0)
    module = model.build()
    groups = on_grid(find_groups(module, model).groups, 8)
    costs = WidthCosts(module, groups, model)
    assert costs.at({g.id: g.grid[0] for g in groups})["macs"] < 0.5 * costs.full["macs"]


class Empty(nn.Module):
    """A layer of no channels beside one that has some."""

    def __init__(self):
        super().__init__()
        self.nothing, self.some, self.head = nn.Linear(8, 0), nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.cat([self.nothing(x), torch.relu(self.some(x))], 1))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_channels_is_passed_over(given):
    model = given(Empty, (8,))
    found = find_groups(model.build(), model)
    assert [group.id for group in found.groups] == ["some"]
    assert {u.layer for u in found.unpruned} >= {"head"}
