"""What hangs together, what is left whole, and the reason."""

import pytest
import torch
from torch import nn

from deploycompress.model import checkpoint
from deploycompress.pruning.apply import apply
from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.discovery import find_groups, producing_layers
from deploycompress.pruning.masked import masked

F = nn.functional
WHOLE = "its channels are the model's outputs"


def summary(model, **options):
    found = find_groups(model.build(), model, **options)
    return {g.id: (g.width, sorted({m.layer for m in g.members})) for g in found.groups}, {
        u.layer: u.reason for u in found.unpruned
    }


def test_a_chain(networks):
    groups, unpruned = summary(networks["chain"])
    assert groups == {"0": (16, ["0", "1", "3"]), "3": (24, ["3", "4", "7"])}
    assert unpruned == {"7": WHOLE}


def test_residual_streams_are_one_group(networks):
    groups, unpruned = summary(networks["residual"])
    assert groups == {
        "stem": (16, ["a", "b", "down", "main", "stem"]),
        "a": (8, ["a", "b", "norm"]),
        "down": (32, ["down", "head", "main"]),
    }
    assert unpruned == {"head": WHOLE}


def test_depthwise_and_gated_channels_go_with_their_input(networks):
    groups, _ = summary(networks["depthwise"])
    assert groups["expand"] == (16, ["excite", "expand", "norm", "project", "spatial", "squeeze"])
    assert set(groups) == {"expand", "squeeze", "project"}


def test_grouped_layers_keep_equally_many_of_every_run(networks):
    model = networks["grouped"]
    found = find_groups(model.build(), model)
    segments = {g.id: g.segment_count for g in found.groups}
    assert segments == {"a": 4, "b": 4, "c": 2}


def test_halves_that_go_separate_ways_keep_equally_many(networks):
    model = networks["split"]
    group = next(g for g in find_groups(model.build(), model).groups if g.id == "a")
    assert group.segments.tolist() == [0] * 8 + [1] * 8


def test_a_flattened_channel_lies_at_many_positions(networks):
    model = networks["flat"]
    group = next(g for g in find_groups(model.build(), model).groups if g.id == "a")
    reads = next(m for m in group.members if m.layer == "b")
    assert reads.at(torch.tensor([1])).tolist() == list(range(16, 32))


def test_a_stream_of_tokens_with_its_embedding_and_position(networks):
    groups, unpruned = summary(networks["tokens"])
    assert groups["up"] == (32, ["down", "up"])
    assert groups["down"][1] == ["down", "embedding", "head", "last", "norm", "position", "up"]
    assert unpruned == {"head": WHOLE}


def test_excluded_layers_stay_and_all_that_is_tied_to_them(networks):
    groups, unpruned = summary(networks["residual"], exclude=("mai*",))
    assert "down" not in groups and set(groups) == {"stem", "a"}
    assert unpruned["down"] == "excluded by the configuration (main)"


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, add_zero_attn=True)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.inside(x)
        x = x + self.attention(x, x, x)[0]
        return self.head(x + self.down(F.relu(self.up(x))))


class Reused(nn.Module):
    """A weight with two owners."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(F.relu(self.first(x)) + F.relu(self.second(x)))


class Constant(nn.Module):
    """A shape written into the code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.free, self.head = (
            nn.Linear(8, 16),
            nn.Linear(4, 4),
            nn.Linear(8, 16),
            nn.Linear(32, 3),
        )

    def forward(self, x):
        shaped = self.b(self.a(x).view(-1, 4, 4)).flatten(1)
        return self.head(torch.cat([shaped, F.relu(self.free(x))], 1))


class Averaged(nn.Module):
    """An average over channels: removing one changes what the others mean."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        y = self.a(x)
        return self.head(y / (1 + y.abs().mean(1, keepdim=True)))


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.extra, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        y = F.relu(self.a(x))
        return (self.head(y), self.extra(x)) if self.training else self.head(y)


class TiedToInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(F.relu(self.b(x + self.a(x))))


@pytest.mark.parametrize(
    ("make", "shape", "layer", "reason"),
    [
        (Attention, (5, 8), "inside", "attention.in_proj_weight has them along 2 dimensions"),
        (Attention, (5, 8), "attention.out_proj", "attention: attention with a learned or zero key"),
        (Constant, (8,), "a", "the forward pass fails when it is pruned"),
        (Averaged, (8,), "a", "the operator mean takes them together"),
        (Unreached, (8,), "extra", "the trace does not reach it"),
        (TiedToInput, (8,), "a", "the forward pass fails when it is pruned"),
    ],
)
def test_what_cannot_be_pruned_is_left_whole_with_its_reason(given, make, shape, layer, reason):
    _, unpruned = summary(given(make, shape))
    assert unpruned[layer].startswith(reason), unpruned[layer]


class LanguageModel(nn.Module):
    """The head reads with the weight that embeds, and has one output for each token."""

    def __init__(self):
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(11, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        x = self.embedding(x)
        return self.head(x + self.down(F.gelu(self.up(x))))


@pytest.mark.parametrize(
    ("make", "shape", "max", "id", "members", "whole"),
    [
        (Reused, (8,), None, "first", ["first", "head", "second"], {"head"}),
        (LanguageModel, (6,), 11, "down", ["down", "embedding", "head", "up"], {"head"}),
    ],
)
def test_a_weight_with_two_owners_is_cut_once_and_stays_one(
    given, make, shape, max, id, members, whole, tmp_path
):
    model = given(make, shape, max)
    groups, unpruned = summary(model)
    assert groups[id] == (16, members) and set(unpruned) == whole
    module = model.build()
    groups = find_groups(module, model).groups
    kept = {id: torch.arange(0, 16, 2)}
    expected = model.call(masked(module, groups, kept), model.example(3))["output"]
    foreseen = WidthCosts(module, groups, model).at(
        {g.id: len(kept.get(g.id, range(g.width))) for g in groups}
    )
    apply(module, groups, kept)
    assert torch.allclose(model.call(module, model.example(3))["output"], expected, atol=1e-5)
    assert {name: foreseen[name] for name in ("macs", "params")} == {
        name: count(module, model)[name] for name in ("macs", "params")
    }
    checkpoint.save(module, tmp_path / "model", model)
    names = ("first", "second") if make is Reused else ("embedding", "head")
    loaded = checkpoint.load(tmp_path / "model", model)
    one, other = (loaded.get_submodule(name) for name in names)
    assert one.weight is other.weight and 8 in one.weight.shape


class Categories(nn.Module):
    """Vectors that only a perceptron reads."""

    def __init__(self):
        super().__init__()
        self.vectors, self.up, self.down = nn.Embedding(7, 4), nn.Linear(20, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.down(F.relu(self.up(self.vectors(x).flatten(1))))


def test_an_embedding_that_no_layer_adds_to_is_left_whole_with_its_reason(given):
    groups, unpruned = summary(given(Categories, (5,), 7))
    assert set(groups) == {"up"} and set(unpruned) == {"down", "vectors"}
    assert unpruned["vectors"].startswith("an embedding is narrowed only with a layer that writes")


@pytest.mark.parametrize(("make", "shape"), [(Attention, (5, 8)), (TiedToInput, (8,))])
def test_the_rest_is_pruned_all_the_same(given, make, shape):
    groups, _ = summary(given(make, shape))
    assert set(groups) & {"up", "b"}


def test_a_model_that_cannot_be_traced_is_left_whole(given):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(9, 4)

        def forward(self, x):
            return self.a(x)

    groups, unpruned = summary(given(Broken, (8,)))
    assert not groups
    assert unpruned["a"].startswith("the model cannot be traced: RuntimeError: ")


def test_the_model_is_not_changed(networks):
    model = networks["depthwise"]
    module = model.build()
    module.head.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    find_groups(module, model)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not module.head.weight.requires_grad
    assert dict(producing_layers(module))["spatial"] == 16
