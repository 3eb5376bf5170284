"""Sizes that modules keep in attributes follow the widths; groups that a module ties together become one."""

import copy

import pytest
import torch
from torch import nn

from deploycompress.model import checkpoint
from deploycompress.model.parity import compare, to_numpy
from deploycompress.pruning import screening
from deploycompress.pruning.apply import apply
from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import choose, on_grid
from deploycompress.pruning.masked import masked

F = nn.functional


class Reshaped(nn.Module):
    """A vision transformer's way to tokens: the width of its stream is an attribute."""

    def __init__(self):
        super().__init__()
        self.hidden_dim, self.image_size = 16, 8
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).reshape(len(x), self.hidden_dim, -1).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class SplitList(nn.Module):
    """InceptionNeXt's mixer: three parts of one stream, each in its own convolution or none."""

    def __init__(self, parts=(12, 6, 6)):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.blocks = nn.ModuleList(Mixer(list(parts)) for _ in range(2))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Mixer(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.split_indexes = parts
        self.wide = nn.Conv2d(6, 6, (1, 3), padding=(0, 1), groups=6)
        self.high = nn.Conv2d(6, 6, (3, 1), padding=(1, 0), groups=6)
        self.norm, self.mix = nn.BatchNorm2d(24), nn.Conv2d(24, 24, 1)

    def forward(self, x):
        rest, wide, high = torch.split(x, self.split_indexes, dim=1)
        return self.mix(self.norm(torch.cat([rest, self.wide(wide), self.high(high)], 1)))


class Partial(nn.Module):
    """FasterNet's partial convolution: two numbers of its own are the parts."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32, 5)
        self.block = PartialConvolution()

    def forward(self, x):
        return self.head((self.stem(x) + self.block(F.relu(self.stem(x)))).mean((2, 3)))


class PartialConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.worked, self.untouched = 8, 24
        self.conv, self.mix = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(32, 32, 1)

    def forward(self, x):
        a, b = torch.split(x, [self.worked, self.untouched], dim=1)
        return self.mix(torch.cat([self.conv(a), b], 1))


class Remainder(Partial):
    """SHViT's attention: the second part is what is left of a width."""

    class Block(PartialConvolution):
        def __init__(self):
            super().__init__()
            self.untouched = 32

        def forward(self, x):
            a, b = torch.split(x, [self.worked, self.untouched - self.worked], dim=1)
            return self.mix(torch.cat([self.conv(a), b], 1))

    def __init__(self):
        super().__init__()
        self.block = self.Block()


class Halved(nn.Module):
    """EdgeNeXt's cascade: one half of a stream has a convolution of its own, and both have to be as wide."""

    def __init__(self):
        super().__init__()
        self.stem, self.spatial = nn.Conv2d(3, 24, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.last, self.head = nn.Conv2d(24, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        return self.head(F.relu(self.last(torch.cat([self.spatial(left), right], 1))).mean((2, 3)))


class Uneven(nn.Module):
    """One layer's outputs go two ways of unequal width."""

    def __init__(self):
        super().__init__()
        self.parts = (8, 24)
        self.a, self.left, self.right = nn.Conv2d(3, 32, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(24, 16, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        left, right = torch.split(F.relu(self.a(x)), self.parts, 1)
        return self.head(torch.cat([self.left(left), self.right(right)], 1).mean((2, 3)))


class TiedHeads(nn.Module):
    """Attention that takes the width of its heads from that of its input."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 4
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x):
            b, n, c = x.shape
            qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            x = F.scaled_dot_product_attention(q, k, v)
            return self.proj(x.transpose(1, 2).reshape(b, n, c))

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(6, 32)
        self.blocks = nn.ModuleList(self.Attention() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.embedding(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x.mean(1))


IMAGE = (3, 8, 8)
MODELS = {
    "reshaped": (Reshaped, IMAGE, {"patch", "up"}),
    "split list": (SplitList, IMAGE, {"stem", "blocks.0.wide", "blocks.0.high"}),
    "partial": (Partial, IMAGE, {"stem", "block.conv"}),
    "remainder": (Remainder, IMAGE, {"stem", "block.conv"}),
    "halved": (Halved, IMAGE, {"stem", "last"}),
    "uneven": (Uneven, IMAGE, {"a", "left", "right"}),
    "tied heads": (TiedHeads, (7, 6), {"embedding"}),
}


@pytest.fixture(params=MODELS)
def case(request, given):
    make, shape, groups = MODELS[request.param]
    return given(make, shape), groups


def outputs(model, module, size=3):
    with torch.no_grad():
        return to_numpy(model.call(module, model.example(size)))


def test_every_width_of_the_grid_equals_the_masked_model_and_is_kept(case, tmp_path):
    model, expected = case
    module = model.build()
    found = find_groups(module, model)
    assert {g.id for g in found.groups} == expected, found.unpruned
    assert {u.layer for u in found.unpruned} == {"head"}
    groups = on_grid(found.groups, 1)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        drawn = [int(torch.randint(len(g.grid) - 1, (), generator=generator)) for g in groups]
        widths = {
            g.id: g.grid[i if seed < 2 else len(g.grid) // 2] for i, g in zip(drawn, groups, strict=True)
        }
        scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in groups}
        kept = choose(groups, scores, widths)
        pruned = copy.deepcopy(module)
        apply(pruned, groups, kept)
        reference = outputs(model, masked(module, groups, kept))
        assert compare(reference, outputs(model, pruned)).relative < 1e-5
        foreseen, realised = WidthCosts(module, groups, model).at(widths), count(pruned, model)
        assert {name: foreseen[name] for name in realised} == realised
    checkpoint.save(pruned, tmp_path / "model", model)
    loaded = checkpoint.load(tmp_path / "model", model)
    assert compare(outputs(model, pruned), outputs(model, loaded)).max_abs == 0
    again = on_grid(find_groups(loaded, model).groups, 1)
    assert {g.id for g in again if g.steps > 1} == {g.id for g in again if len(g.grid) > 1} != set()


def test_sizes_of_each_part_follow_those_who_lie_there(given):
    model = given(SplitList, IMAGE)
    groups = {g.id: g for g in find_groups(model.build(), model).groups}
    sizes = {id: [(s.owner, s.index, s.amount) for s in g.sizes] for id, g in groups.items()}
    assert sizes == {
        "stem": [("blocks.0", 0, 12), ("blocks.1", 0, 12)],
        "blocks.0.wide": [("blocks.0", 1, 6), ("blocks.1", 1, 6)],
        "blocks.0.high": [("blocks.0", 2, 6), ("blocks.1", 2, 6)],
    }
    module = model.build()
    apply(module, list(groups.values()), {"blocks.0.wide": torch.arange(2), "stem": torch.arange(7)})
    assert [block.split_indexes for block in module.blocks] == [[7, 2, 6]] * 2


def test_parts_of_unequal_width_keep_the_same_share(given):
    model = given(Uneven, IMAGE)
    group = next(g for g in find_groups(model.build(), model).groups if g.id == "a")
    assert (group.width, group.steps, group.segments.bincount().tolist()) == (32, 8, [8, 24])
    kept = group.keep(torch.arange(32.0), 16)
    assert kept.tolist() == [*range(4, 8), *range(20, 32)]


def test_whole_heads_go_with_as_large_a_share_of_the_stream(given):
    model = given(TiedHeads, (7, 6))
    (group,) = find_groups(model.build(), model).groups
    assert (group.width, group.steps, group.heads.owners) == (96, 4, ("blocks.0", "blocks.1"))
    module = model.build()
    apply(module, [group], {group.id: group.keep(torch.rand(96), 48)})
    assert [block.num_heads for block in module.blocks] == [2, 2] and module.embedding.out_features == 16


def test_a_width_that_nothing_holds_is_not_guessed(given):
    class Written(Reshaped):
        """The width stands in the code; an attribute has the same value and is not used for it."""

        def forward(self, x):
            x = self.patch(x).reshape(len(x), 16, -1).transpose(1, 2)
            return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))

    model = given(Written, IMAGE)
    found = find_groups(model.build(), model)
    assert {g.id: g.sizes for g in found.groups} == {"up": ()}
    reasons = {u.layer: u.reason for u in found.unpruned}
    assert reasons["patch"].startswith("the forward pass fails when it is pruned (RuntimeError: shape")


def test_a_module_that_fails_costs_few_trials(given, monkeypatch):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.b(self.a(x).view(-1, 4, 4).flatten(1))

    class Many(nn.Sequential):
        def __init__(self):
            super().__init__(*(Constant() if i % 5 == 2 else nn.Linear(16, 16) for i in range(15)))

    trials = []
    monkeypatch.setattr(screening, "try_out", lambda *a, real=screening.try_out: trials.append(1) or real(*a))
    model = given(Many, (16,))
    found = find_groups(model.build(), model)
    failed = [u.layer for u in found.unpruned if "the forward pass fails" in u.reason]
    assert failed == ["2.a", "7.a", "12.a"] and len(found.groups) == 14
    assert len(trials) <= 30, len(trials)
