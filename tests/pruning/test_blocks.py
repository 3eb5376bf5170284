"""Blocks that can go are found, cost what they cost, and leave a network that is what it should be."""

import copy
import json

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.data.tasks.classification import Classification
from deploycompress.errors import StageFailed
from deploycompress.model import checkpoint
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.model.parity import compare, to_numpy
from deploycompress.pruning.apply import apply
from deploycompress.pruning.blocks import block_losses, bypassed, find_blocks, remove
from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import choose, on_grid
from deploycompress.pruning.masked import masked
from deploycompress.pruning.rises import Rises
from deploycompress.recovery.compensation import compensate
from deploycompress.recovery.evaluation import mean_loss

F = nn.functional


class Basic(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(c_in, c_out, 1, stride) if c_in != c_out else None
        nn.init.zeros_(self.bn2.weight)  # as networks begin: the branch counts for nothing yet

    def forward(self, x):
        shortcut = x if self.down is None else self.down(x)
        return self.relu(shortcut + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.layer2 = nn.Sequential(Basic(8, 16, 2), Basic(16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x, mask):
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(16), Attention(), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, hidden_states, mask=None):
        x = hidden_states + self.attention(self.norm1(hidden_states), mask)
        return x + self.mlp(self.norm2(x))


class PostNorm(PreNorm):
    def forward(self, hidden_states, mask=None):
        x = self.norm1(hidden_states + self.attention(hidden_states, mask))
        return self.norm2(x + self.mlp(x))


class Transformer(nn.Module):
    """Its layers get the mask first by keyword, or the states by keyword."""

    layer: type = PreNorm

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.position = nn.Parameter(torch.randn(1, 6, 16))
        self.layers = nn.ModuleList(self.layer() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        mask = torch.ones(6, 6, dtype=torch.bool).tril()
        x = self.embedding(x) + self.position
        for i, layer in enumerate(self.layers):
            x = layer(x, mask) if i else layer(hidden_states=x, mask=mask)
        return self.head(self.norm(x).mean(1))


class Bert(Transformer):
    layer = PostNorm


IMAGE = (3, 8, 8)


@pytest.fixture
def network(request, given):
    make = request.param
    return given(make, (6,), max=11) if issubclass(make, Transformer) else given(make, IMAGE)


EVERY = pytest.mark.parametrize("network", [ResNet, Transformer, Bert], indirect=True)


def prepared(model, align=2):
    """The module with every branch alive, its groups on a grid, and its blocks."""
    module = model.build()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                part.weight.copy_(0.5 + torch.rand(part.weight.shape, generator=generator))
    groups = on_grid(find_groups(module, model).groups, align)
    return module, groups, find_blocks(module, model, groups)


def outputs(model, module, size=3):
    with torch.no_grad():
        return to_numpy(model.call(module, model.example(size)))


def samples(model, count=3, labels=True):
    for i in range(count):
        inputs = {k: v + i if v.is_floating_point() else v for k, v in model.example(8 + i).items()}
        yield Batch(inputs, torch.arange(8 + i) % 5 if labels else None, 8 + i)


# ---------------------------------------------------------------- which there are


@pytest.mark.parametrize(
    ("network", "ids"),
    [
        (ResNet, ["layer1.0", "layer1.1", "layer2.1"]),
        (Transformer, ["layers.0", "layers.1", "layers.2"]),
        (Bert, ["layers.0", "layers.1", "layers.2"]),
    ],
    indirect=["network"],
)
def test_the_blocks_of_a_network(network, ids):
    module = network.build()  # with its zero-initialised norms
    before = {k: v.clone() for k, v in module.state_dict().items()}
    groups = find_groups(module, network).groups
    blocks = find_blocks(module, network, groups)
    assert [b.id for b in blocks] == ids
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert not any("layer2.0" in b.layers or b.id in b.layers for b in blocks)


@pytest.mark.parametrize("network", [ResNet], indirect=True)
def test_a_block_knows_what_lies_inside(network):
    _, groups, blocks = prepared(network)
    assert blocks[0].layers == tuple(f"layer1.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2", "relu"))
    assert [b.groups for b in blocks] == [("layer1.0.conv1",), ("layer1.1.conv1",), ("layer2.1.conv1",)]
    assert {g.id for g in groups} > {id for b in blocks for id in b.groups}


@pytest.mark.parametrize("network", [ResNet], indirect=True)
@pytest.mark.parametrize("pattern", ["layer1.1", "layer1.1.*", "*.1.conv2"])
def test_excluded_layers_stay_with_their_block(network, pattern):
    found = {b.id for b in find_blocks(network.build(), network, (), [pattern])}
    assert "layer1.0" in found and "layer1.1" not in found


class Nested(nn.Module):
    """The inner residual block is a candidate of its own, so the outer one is none."""

    def __init__(self):
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(8, 8), Wrapped(nn.Linear(8, 8)), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.after(self.inner(self.before(x)))


class Wrapped(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + torch.tanh(self.branch(x))


class Inverse(nn.Module):
    """There is no inverse of zero."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.branch(x) @ torch.linalg.inv(self.branch.weight)


class Once:
    def __deepcopy__(self, memo):
        raise TypeError("there is one of it")


class Told(Wrapped):
    def forward(self, x, extra):
        return super().forward(x)


class Odd(nn.Module):
    """What must not be offered, beside one block that may."""

    def __init__(self):
        super().__init__()
        self.twice, self.asked, self.idle = (Wrapped(nn.Linear(8, 8)) for _ in range(3))
        self.tied, self.fine = Wrapped(nn.Linear(8, 8)), Wrapped(nn.Linear(8, 8))
        self.plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.nested, self.inverse, self.told = Nested(), Inverse(), Told(nn.Linear(8, 8))
        self.head = nn.Linear(8, 5)
        self.tied.branch.weight = self.plain[0].weight

    def forward(self, x):
        x = self.twice(self.twice(x)) + self.asked.branch.bias
        self.idle(x)
        x = self.nested(self.plain(self.fine(self.tied(self.asked(x)))))
        return self.head(self.told(self.inverse(x), Once()))


def test_what_is_no_block(given):
    model = given(Odd, (8,))
    assert [b.id for b in find_blocks(model.build(), model, ())] == ["fine", "nested.inner"]


def test_layers_of_a_plain_chain_are_no_blocks(given):
    """Without one of them the next would get other channels than those that it was made for."""

    class Separable(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.pointwise = nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return F.relu(self.pointwise(self.depthwise(x)))

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.blocks = nn.Sequential(*(Separable() for _ in range(3)))
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    model = given(Chain, (3, 8, 8))
    module = model.build()
    assert find_blocks(module, model, find_groups(module, model).groups) == ()


def test_blocks_that_need_each_other(given):
    class Either(nn.Module):
        """Runs without one of its blocks, not without both."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Wrapped(nn.Linear(8, 8)) for _ in range(2))

        def forward(self, x):
            assert any(isinstance(layer, Wrapped) for layer in self.layers)
            return self.layers[1](self.layers[0](x))

    model = given(Either, (8,))
    assert [b.id for b in find_blocks(model.build(), model, ())] == ["layers.0"]


# ---------------------------------------------------------------- taking them out


@EVERY
def test_a_removed_block_is_its_input(network):
    module, _, blocks = prepared(network)
    whole = outputs(network, module)
    for gone in ([blocks[0]], [blocks[1]], blocks[::2], blocks):
        without = copy.deepcopy(module)
        remove(without, gone)
        found = outputs(network, without)
        assert compare(outputs(network, bypassed(module, gone)), found).max_abs == 0
        assert compare(whole, found).relative > 1e-3
    assert compare(whole, outputs(network, module)).max_abs == 0


@EVERY
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_and_channels_together(network, seed, tmp_path):
    """Masked and bypassed equals pruned; foreseen equals counted; a checkpoint brings it back."""
    module, groups, blocks = prepared(network)
    generator = torch.Generator().manual_seed(seed)
    scores = {g.id: torch.rand(g.width, generator=generator, dtype=torch.float64) for g in groups}
    widths = {g.id: g.grid[int(torch.randint(0, len(g.grid), (), generator=generator))] for g in groups}
    gone = [b for i, b in enumerate(blocks) if i == seed or seed == 2]
    kept = choose(groups, scores, widths)
    foreseen = WidthCosts(module, groups, network, blocks).at({**widths, **{b.id: 0 for b in gone}})
    pruned = copy.deepcopy(module)
    apply(pruned, groups, kept, gone)
    reference = bypassed(masked(module, groups, kept), gone)
    assert compare(outputs(network, reference), outputs(network, pruned)).relative < 1e-5
    realised = count(pruned, network)
    assert {name: foreseen[name] for name in realised} == realised
    inside = {id for b in gone for id in b.groups}
    assert inside and foreseen["channels"] == sum(w for id, w in widths.items() if id not in inside)
    checkpoint.save(pruned, tmp_path / "model", network)
    loaded = checkpoint.load(tmp_path / "model", network)
    assert compare(outputs(network, pruned), outputs(network, loaded)).max_abs == 0


@EVERY
def test_blocks_count_nothing_until_they_are_out(network):
    module, groups, blocks = prepared(network)
    full = {g.id: g.width for g in groups}
    plain, knowing = WidthCosts(module, groups, network), WidthCosts(module, groups, network, blocks)
    assert knowing.full == plain.full == knowing.at({**full, **{b.id: 1 for b in blocks}})
    for block in blocks:
        assert all(v < plain.full[k] for k, v in knowing.at({**full, block.id: 0}).items())


@EVERY
def test_what_lost_blocks_is_pruned_again_and_goes_on_training(network, tmp_path):
    module, groups, blocks = prepared(network)
    apply(module, groups, {}, blocks[:1])
    checkpoint.save(module, tmp_path / "once", network)
    module = checkpoint.load(tmp_path / "once", network)
    again = on_grid(find_groups(module, network).groups, 1)
    more = find_blocks(module, network, again)
    assert [b.id for b in more] == [b.id for b in blocks[1:]]
    kept = choose(
        again, {g.id: torch.arange(float(g.width)) for g in again}, {g.id: g.grid[0] for g in again}
    )
    reference = bypassed(masked(module, again, kept), more[-1:])
    apply(module, again, kept, more[-1:])
    assert compare(outputs(network, reference), outputs(network, module)).relative < 1e-5
    checkpoint.save(module, tmp_path / "twice", network)
    module = checkpoint.load(tmp_path / "twice", network).train()
    network.call(module, network.example(4))["output"].square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("network", [ResNet], indirect=True)
@pytest.mark.parametrize("path", ["layer9", "", "layer1.0"])
def test_a_tampered_list_of_removed_blocks(network, tmp_path, path):
    module, _, blocks = prepared(network)
    remove(module, blocks[:1])
    checkpoint.save(module, tmp_path / "model", network)
    file = tmp_path / "model" / "architecture.json"
    document = json.loads(file.read_text())
    assert document["architecture"]["removed"] == ["layer1.0"]
    document["architecture"]["removed"] = ["layer1", path]
    file.write_text(json.dumps(document))
    with pytest.raises(StageFailed, match=f"takes out a block '{path}' that the model has not"):
        checkpoint.load(tmp_path / "model", network)


@pytest.mark.parametrize("network", [ResNet], indirect=True)
def test_what_reads_a_pruned_stream_is_fitted_without_the_block(network):
    module, groups, blocks = prepared(network)
    kept = {g.id: torch.arange(0, g.width, 2) for g in groups}
    pruned = copy.deepcopy(module)
    apply(pruned, groups, kept, blocks[:1])
    done = compensate(pruned, module, groups, kept, list(samples(network)), network.call)
    assert "layer1.1.conv1" in done.errors and not any(name.startswith("layer1.0") for name in done.errors)


# ---------------------------------------------------------------- what they are worth


@EVERY
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_the_loss_of_a_block(network, labels):
    module, _, blocks = prepared(network)
    batches, task = list(samples(network, labels=labels)), Classification()
    reestimate_batchnorm(module, [b.inputs for b in batches], network.call)
    before = outputs(network, module)
    losses = block_losses(module, blocks, Rises(module, batches, batches, task, network).of)
    assert list(losses) == [b.id for b in blocks]

    def loss_with_new_statistics(net):
        reestimate_batchnorm(net, [b.inputs for b in batches], network.call)
        return mean_loss(net, batches, task, network.call, teacher=module)

    whole = loss_with_new_statistics(copy.deepcopy(module))
    for block in blocks:
        rise = loss_with_new_statistics(bypassed(module, [block])) - whole
        assert losses[block.id] == pytest.approx(max(0.0, rise), abs=1e-6)
    assert max(losses.values()) > 0 and (labels or min(losses.values()) > 0)
    assert compare(before, outputs(network, module)).max_abs == 0


@pytest.mark.parametrize("network", [Transformer], indirect=True)
def test_a_block_without_which_there_is_no_loss_has_to_stay(network):
    class Broken(Classification):
        calls = 0

        def loss(self, outputs, batch):
            Broken.calls += 1
            return super().loss(outputs, batch) * (float("nan") if Broken.calls > 1 else 1.0)

    module, _, blocks = prepared(network)
    batches = list(samples(network, 1))
    losses = block_losses(module, blocks[:1], Rises(module, batches, batches, Broken(), network).of)
    assert losses == {blocks[0].id: float("inf")}
