"""Whole heads of attention: every layout, what is cut with them, and what is left whole."""

import copy

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.graph.export import export_onnx
from deploycompress.model import checkpoint
from deploycompress.model.parity import compare, to_numpy
from deploycompress.pruning.apply import apply
from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.criteria.magnitude import Magnitude
from deploycompress.pruning.criteria.taylor import Taylor
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import choose, on_grid
from deploycompress.pruning.masked import masked

F = nn.functional
DIM, HEADS, TOKENS = 16, 4, 6


class Packed(nn.Module):
    """As in timm: one layer for queries, keys and values, normalised heads, fused attention, and an MLP."""

    order = "part, head, channel"

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = HEADS, 4, DIM
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.q_norm = nn.LayerNorm(4)

    def forward(self, x):
        q, k, v = self.split(self.qkv(x))
        x = F.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.proj(self.join(x))

    def split(self, x):
        return x.reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)

    def join(self, x):
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], self.attn_dim)


class ByHead(Packed):
    """Each head's queries, keys and values beside one another."""

    def split(self, x):
        return x.reshape(*x.shape[:2], self.num_heads, 3, self.head_dim).permute(3, 0, 2, 1, 4)


class Across(Packed):
    """The heads of a channel beside one another."""

    def split(self, x):
        return x.reshape(*x.shape[:2], 3, self.head_dim, self.num_heads).permute(2, 0, 4, 1, 3)

    def join(self, x):
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], self.attn_dim)


class Separate(nn.Module):
    """As in BERT: three layers, and the projection in another module."""

    def __init__(self):
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = HEADS, 4, DIM
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, hidden_states):
        q, k, v = (
            layer(hidden_states).view(*hidden_states.shape[:2], -1, self.attention_head_size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (q @ k.transpose(-1, -2) * self.attention_head_size**-0.5).softmax(-1)
        x = (scores @ v).transpose(1, 2)
        return x.reshape(*x.shape[:2], self.all_head_size), scores.mean((1, 2, 3))


class Outside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.dense = Separate(), nn.Linear(DIM, DIM)

    def forward(self, x):
        return self.dense(self.inner(hidden_states=x)[0])


class Window(nn.Module):
    """As in Swin: a table of relative positions and a scale with a column for each head."""

    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(DIM)), nn.Parameter(torch.randn(DIM))
        self.register_buffer("k_bias", torch.zeros(DIM), persistent=False)
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1, HEADS))
        self.logit_scale = nn.Parameter(torch.ones(HEADS, 1, 1))
        place = torch.arange(TOKENS)
        self.register_buffer("index", place[:, None] - place + TOKENS - 1)

    def forward(self, x):
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * self.logit_scale.exp()
        scores = scores + self.table[self.index].permute(2, 0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Conv1D(nn.Module):
    """The linear layer of GPT-2, whose weight is [in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * nx**-0.5), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class Transposed(nn.Module):
    """As in GPT-2."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.split_size, self.embed_dim = HEADS, 4, DIM, DIM
        self.c_attn, self.c_proj = Conv1D(3 * DIM, DIM), Conv1D(DIM, DIM)

    def forward(self, x):
        q, k, v = (
            part.view(*part.shape[:2], -1, self.head_dim).transpose(1, 2)
            for part in self.c_attn(x).split(self.split_size, dim=2)
        )
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.c_proj(x.reshape(*x.shape[:2], -1))


class Crossed(nn.Module):
    """Keys and values, packed, of other tokens than the queries'."""

    def __init__(self):
        super().__init__()
        self.heads = HEADS
        self.other = nn.Parameter(torch.randn(1, 3, DIM))
        self.to_q, self.to_kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)
        self.to_out = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.1))

    def forward(self, x):
        k, v = self.to_kv(self.other).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), k, v))
        scores = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        return self.to_out((scores @ v).transpose(1, 2).flatten(2))


class Torch(nn.MultiheadAttention):
    def __init__(self, **options):
        super().__init__(DIM, HEADS, batch_first=True, **options)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class Wrapped(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, **options)

    def forward(self, x):
        x = x.transpose(0, 1)
        mask = torch.triu(torch.ones(len(x), len(x), dtype=torch.bool), 1)
        return self.attention(x, x, x, attn_mask=mask)[0].transpose(0, 1)


class Encoder(nn.TransformerEncoderLayer):
    def __init__(self):
        super().__init__(DIM, HEADS, 32, batch_first=True)


class Network(nn.Module):
    """Tokens, an attention block, an MLP, a classifier."""

    def __init__(self, attention):
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, DIM), nn.Parameter(torch.randn(1, TOKENS, DIM))
        self.norm, self.attention = nn.LayerNorm(DIM), attention()
        self.up, self.down, self.head = nn.Linear(DIM, 32), nn.Linear(32, DIM), nn.Linear(DIM, 5)

    def forward(self, x):
        x = self.embedding(x) + self.position
        x = x + self.attention(self.norm(x))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


LAYOUTS = (Packed, ByHead, Across, Outside, Window, Transposed, Crossed, Wrapped, Encoder)


@pytest.fixture(params=LAYOUTS, ids=lambda attention: attention.__name__.lower())
def model(request, given):
    return given(lambda: Network(request.param), (TOKENS,), max=11)


def outputs(model, module, size):
    with torch.no_grad():
        return to_numpy(model.call(module, model.example(size)))


def pruned(model, seed=0):
    """The model, its groups on their grid, random widths below the full ones, and the model pruned to them."""
    module = model.build()
    groups = on_grid(find_groups(module, model).groups, 2)
    generator = torch.Generator().manual_seed(seed)
    scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in groups}
    widths = {g.id: g.grid[len(g.grid) // 2 - 1] for g in groups}
    kept = choose(groups, scores, widths)
    cut = copy.deepcopy(module)
    apply(cut, groups, kept)
    return module, groups, widths, kept, cut


def test_heads_are_found_in_every_layout(model):
    found = find_groups(model.build(), model)
    heads = [g for g in found.groups if g.heads is not None]
    assert [(g.width, g.steps, g.step) for g in heads] == [(16, 4, 4)]
    assert [u.layer for u in found.unpruned] == ["head"]
    assert {g.id for g in found.groups} > {"up"}


def test_pruned_equals_masked_costs_what_was_foreseen_and_comes_back(model, tmp_path):
    module, groups, widths, kept, cut = pruned(model)
    assert any(g.heads and len(kept[g.id]) == 2 * g.step for g in groups)
    reference = masked(module, groups, kept)
    for size in (1, 5):
        assert compare(outputs(model, reference, size), outputs(model, cut, size)).relative < 1e-5
    assert compare(outputs(model, module, 2), outputs(model, cut, 2)).relative > 1e-3
    foreseen, realised = WidthCosts(module, groups, model).at(widths), count(cut, model)
    assert {name: foreseen[name] for name in realised} == realised
    checkpoint.save(cut, tmp_path / "model", model)
    loaded = checkpoint.load(tmp_path / "model", model)
    assert compare(outputs(model, cut, 3), outputs(model, loaded, 3)).max_abs == 0


def test_pruned_heads_can_be_pruned_again_and_trained(model):
    _, _, _, _, cut = pruned(model)
    again = on_grid(find_groups(cut, model).groups, 1)
    assert [g.width for g in again if g.heads] == [8]
    scores = {g.id: torch.arange(g.width, dtype=torch.float64) for g in again}
    kept = choose(again, scores, {g.id: g.grid[0] for g in again})
    reference = masked(cut, again, kept)
    apply(cut, again, kept)
    assert compare(outputs(model, reference, 2), outputs(model, cut, 2)).relative < 1e-5
    cut.train()
    sum(t.square().mean() for t in model.call(cut, model.example(4)).values()).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in cut.parameters())


@pytest.mark.parametrize("attention", [Wrapped, Transposed, Window])
def test_pruned_heads_export_with_a_dynamic_batch(attention, given, tmp_path):
    model = given(lambda: Network(attention), (TOKENS,), max=11)
    cut = pruned(model)[-1]
    feeds = [model.example(1), model.example(3)]
    exported = export_onnx(cut, model, tmp_path / "model.onnx", feeds=feeds)
    assert exported.exporter == "dynamo" and max(p.relative for p in exported.parity) < 1e-5


@pytest.mark.parametrize("criterion", [Magnitude(), Taylor()], ids=["magnitude", "taylor"])
def test_criteria_see_what_packed_heads_are_made_of(given, criterion):
    model = given(lambda: Network(Wrapped), (TOKENS,), max=11)
    module = model.build()
    group = next(g for g in find_groups(module, model).groups if g.heads)
    packed, projection = module.attention.attention.in_proj_weight, module.attention.attention.out_proj.weight
    with torch.no_grad():  # the second head is larger, and the only one that is read
        packed.view(3, HEADS, 4, DIM)[:, 1] *= 3
        projection.view(DIM, HEADS, 4)[:, [0, 2, 3]] = 0
    batches = [Batch(model.example(4), None, 4)]
    scores = criterion(module, [group], batches, None, model.call)[group.id]
    assert group.keep(scores, 4).tolist() == [4, 5, 6, 7]


class Fixed(Packed):
    """The width of the input is written into the last reshape."""

    def join(self, x):
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], DIM)


class Unnamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        self.alpha, self.beta, self.gamma = (nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.alpha, self.beta, self.gamma)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class OneHead(Packed):
    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.q_norm = 1, DIM, nn.LayerNorm(DIM)


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (Fixed, "attention.qkv", "attention: no layout of its heads fits: its forward fails without some"),
        (Unnamed, "attention.alpha", "attention: its projections to queries, keys and values are not recog"),
        (OneHead, "attention.qkv", "attention: it has one head, which stays"),
        (lambda: Wrapped(add_zero_attn=True), "attention.attention.out_proj", "attention: attention with a"),
    ],
)
def test_what_is_not_understood_is_left_whole_with_its_reason(make, layer, reason, given):
    model = given(lambda: Network(make), (TOKENS,), max=11)
    found = find_groups(model.build(), model)
    assert not any(g.heads for g in found.groups)
    assert "up" in {g.id for g in found.groups}
    assert {u.layer: u.reason for u in found.unpruned}[layer].startswith(reason)


def test_recurrent_layers_are_left_whole_and_what_follows_is_pruned(given):
    class Recurrent(nn.Module):
        def __init__(self, kind=nn.GRU):
            super().__init__()
            self.first, self.cell = nn.Linear(4, 8), kind(8, 12, batch_first=True, bidirectional=True)
            self.up, self.head = nn.Linear(24, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(F.relu(self.up(self.cell(self.first(x))[0][:, -1])))

    for kind in (nn.GRU, nn.LSTM):
        model = given(lambda kind=kind: Recurrent(kind), (5, 4))
        found = find_groups(model.build(), model)
        assert [g.id for g in found.groups] == ["up"]
        reason = f"{kind.__name__} is not a kind of layer that is cut"
        assert {u.layer: u.reason for u in found.unpruned} == {
            "first": f"tied to cell: {reason}",
            "cell": reason,
            "head": "its channels are the model's outputs",
        }
