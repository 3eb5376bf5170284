"""Fitted weights are the least-squares optimum, layer after layer, and are taken only where they help."""

import copy

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.data.tasks.classification import Classification
from deploycompress.errors import StageFailed
from deploycompress.pruning.apply import apply
from deploycompress.pruning.discovery import find_groups
from deploycompress.recovery import compensation
from deploycompress.recovery.compensation import _patches, accept_if_better, compensate
from deploycompress.recovery.evaluation import mean_loss
from deploycompress.recovery.repair import repair

F = nn.functional


class Given:
    """A network whose one input is ``x``."""

    def __init__(self, *shape):
        self.shape = shape

    def example(self, size):
        return {"x": torch.randn(size, *self.shape, generator=torch.Generator().manual_seed(size))}

    def call(self, module, inputs):
        return {"output": module(inputs["x"])}


def halved(module, model, keep=lambda g: torch.arange(0, g.width, 2), only=None):
    """The network with every other channel of its groups gone, the groups, and what was kept."""
    groups = [g for g in find_groups(module, model).groups if only is None or g.id in only]
    kept = {g.id: keep(g) for g in groups}
    pruned = copy.deepcopy(module)
    apply(pruned, groups, kept)
    return pruned, groups, kept


def samples(model, count=4, size=32):
    for i in range(count):
        inputs = {k: v + i for k, v in model.example(size + i).items()}
        yield Batch(inputs, None, size + i)


@pytest.mark.parametrize("bias", [True, False])
def test_two_linear_layers_reach_the_closed_form_optimum(bias):
    torch.manual_seed(0)
    model = Given(6)
    module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3, bias=bias)).eval()
    pruned, groups, kept = halved(module, model)
    batches = list(samples(model))
    x = torch.cat([b.inputs["x"] for b in batches]).double()
    hidden, target = pruned.double()[0](x).detach(), module.double()[1](module[0](x)).detach()
    if bias:
        hidden = torch.cat([hidden, torch.ones(len(x), 1)], 1)
    optimum = torch.linalg.lstsq(hidden, target).solution
    least = float((hidden @ optimum - target).square().sum() / target.square().sum())
    done = compensate(pruned.float(), module.float(), groups, kept, batches, model.call, ridge=1e-9)
    assert torch.allclose(pruned[1].weight.T.double(), optimum[:4], atol=1e-3)
    assert list(done.errors) == ["1"] and done.notes == ()
    before, after = done.errors["1"]
    assert after == pytest.approx(least, rel=1e-3) and after < 0.8 * before
    realised = (pruned(x.float()).detach().double() - target).square().sum() / target.square().sum()
    assert float(realised) == pytest.approx(least, rel=1e-3)


def test_what_is_linearly_dependent_is_made_up_for_whole():
    torch.manual_seed(0)
    model = Given(3, 9, 9)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 6, 3, stride=2, padding=2, dilation=2, groups=2)
    ).eval()
    with torch.no_grad():
        module[0].weight[1::2] = 3 * module[0].weight[0::2]
    pruned, groups, kept = halved(module, model)
    batches = list(samples(model))
    compensate(pruned, module, groups, kept, batches, model.call, ridge=1e-9)
    x = batches[1].inputs["x"]
    assert torch.allclose(pruned(x), module(x), atol=1e-3)


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (nn.Conv1d(4, 6, 5, stride=2, padding=1), (3, 4, 16)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, padding="same"), (3, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 5, 5)),
        (nn.Conv3d(2, 4, 2), (2, 2, 3, 4, 5)),
        (nn.Linear(5, 6), (2, 3, 5)),
    ],
)
def test_patches_times_weights_are_the_layer(part, shape):
    given = torch.randn(shape)
    with torch.no_grad():
        output = part(given)
        flat = compensation.channels_last(part, output)
        rows = torch.randperm(len(flat))[:7]
        found = _patches(part, given, output, rows)
        runs = getattr(part, "groups", 1)
        weight = part.weight.reshape(runs, -1, found.shape[2])
        again = torch.einsum("prd,rod->pro", found, weight).flatten(1) + part.bias
    assert torch.allclose(again, flat[rows], atol=1e-5)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 1)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu_(self.stem(x))
        x = torch.relu_(x + self.b(torch.relu_(self.norm(self.a(x)))))
        return self.head(x.mean((2, 3)))


def test_later_layers_see_what_earlier_ones_became():
    """All readers of a residual stream too; outputs that are cut are not asked for."""
    torch.manual_seed(0)
    model = Given(3, 8, 8)
    module = Residual().eval()
    pruned, groups, kept = halved(module, model)
    plain = copy.deepcopy(pruned)
    batches = list(samples(model))
    done = compensate(pruned, module, groups, kept, batches, model.call)
    assert list(done.errors) == ["a", "b", "head"]
    assert all(after < before for before, after in done.errors.values())
    x = batches[0].inputs["x"]
    apart = {net: float((net(x) - module(x)).detach().square().mean()) for net in (plain, pruned)}
    assert apart[pruned] < 0.5 * apart[plain]


def test_a_layer_is_fitted_to_what_it_reads_at_last():
    torch.manual_seed(0)
    model = Given(3, 8, 8)
    module = Residual().eval()
    pruned, groups, kept = halved(module, model)
    batches = list(samples(model))
    compensate(pruned, module, groups, kept, batches, model.call, ridge=1e-9)
    read, wanted = [], []
    pruned.head.register_forward_hook(lambda m, given, out: read.append(given[0].detach()))
    for batch in batches:
        model.call(pruned, batch.inputs)
        wanted.append(module(batch.inputs["x"]).detach())
    read = torch.cat([torch.cat(read), torch.ones(sum(map(len, read)), 1)], 1).double()
    optimum = torch.linalg.lstsq(read, torch.cat(wanted).double()).solution
    assert torch.allclose(pruned.head.weight.T.double(), optimum[:8], atol=1e-3)


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.b(self.a(x)) + self.b(self.a(x.flip(1)))

    torch.manual_seed(0)
    model = Given(6)
    module = Twice().eval()
    pruned, groups, kept = halved(module, model)
    batches = list(samples(model))
    compensate(pruned, module, groups, kept, batches, model.call, ridge=1e-9)
    x = torch.cat([b.inputs["x"] for b in batches])
    x = torch.cat([x, x.flip(1)])
    hidden = torch.cat([pruned.a(x), torch.ones(len(x), 1)], 1).detach()
    optimum = torch.linalg.lstsq(hidden, module.b(module.a(x)).detach()).solution
    assert torch.allclose(pruned.b.weight.T, optimum[:4], atol=1e-3)


def test_what_cannot_be_fitted_is_named(monkeypatch):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.up = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.up(self.a(x)).mean((2, 3)))

    model = Given(3, 4, 4)
    module = Odd().eval()
    pruned, groups, kept = halved(module, model)
    monkeypatch.setattr(compensation, "LARGEST", 1)
    done = compensate(pruned, module, groups, kept, list(samples(model)), model.call)
    assert [(n.subject, n.message) for n in done.notes] == [
        ("up", "its weights are not fitted: it is a transposed convolution"),
        ("head", "its weights are not fitted: an output of it reads 2 inputs, more than 1"),
    ]
    assert not done.errors


class Same(nn.Conv2d):
    """Pads in its own forward, as TensorFlow's networks do."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std(), bias)


def patched(*sizes):
    layer = nn.Conv2d(*sizes)
    layer.forward = lambda x: 2 * nn.Conv2d.forward(layer, x)
    return layer


def normed(*sizes):
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(*sizes))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Same, "it is a Same, which computes in a way of its own"),
        (Standardised, "it is a Standardised, which computes in a way of its own"),
        (patched, "it is a Conv2d, which computes in a way of its own"),
        (normed, "its weight is computed from other parameters"),
    ],
)
def test_a_layer_that_computes_in_its_own_way_is_left_alone(make, reason):
    model = Given(3, 8, 8)
    first, second = nn.Conv2d(3, 8, 1), make(8, 4, 3)
    module = nn.Sequential(first, second).eval()
    groups = [
        g for g in find_groups(nn.Sequential(first, nn.Conv2d(8, 4, 3)).eval(), model).groups if g.id == "0"
    ]
    kept = {"0": torch.arange(8)}  # every channel: what is read is as the layer expects it
    given = copy.deepcopy(module) if make is not patched else module
    removed = {("1", "in"): torch.tensor([0])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compensation, "removed_positions", lambda *_: removed)
        done = compensate(given, module, groups, kept, list(samples(model)), model.call)
    assert [(n.subject, n.message) for n in done.notes] == [("1", f"its weights are not fitted: {reason}")]
    assert not done.errors


def test_weights_of_two_layers_and_packed_attention_are_left_alone():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.attention = nn.Linear(6, 8, bias=False), nn.MultiheadAttention(8, 2)
            self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 6, bias=False)
            self.again = nn.Linear(8, 6, bias=False)
            self.again.weight = self.head.weight

        def forward(self, x):
            x = self.embedding(x)
            x = x + self.mix(self.attention(query=x, key=x, value=x)[0])
            return self.head(x) + self.again(x)

    model = Given(6)
    module = Language().eval()
    pruned, groups, kept = halved(module, model)
    done = compensate(pruned, module, groups, kept, list(samples(model)), model.call)
    reasons = {n.subject: n.message.removeprefix("its weights are not fitted: ") for n in done.notes}
    assert reasons["attention"].startswith("it is a ") and reasons["attention"].endswith("MultiheadAttention")
    assert reasons["head"] == reasons["again"] == "another layer uses its weight too"
    assert pruned.head.weight is pruned.again.weight and "mix" in done.errors


def test_channels_that_are_always_off_are_no_obstacle():
    model = Given(6)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.fill_(-1.0)
    pruned, groups, kept = halved(module, model)
    weight = pruned[2].weight.clone()
    compensate(pruned, module, groups, kept, list(samples(model)), model.call)
    assert torch.equal(pruned[2].weight, weight)


def test_few_samples_are_not_fitted():
    """A classifier that is fitted to as many samples as it has inputs gives each of them back, and nothing else."""
    model = Given(6)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    pruned, groups, kept = halved(module, model)
    before = pruned[2].weight.clone()
    nine = Batch({"x": torch.randn(9, 6)}, None, 9)  # 4 inputs and a bias: 10 are needed
    done = compensate(pruned, module, groups, kept, [nine], model.call)
    assert [note.subject for note in done.notes] == ["2"] and "9 samples" in done.notes[0].message
    assert not done.errors and torch.equal(pruned[2].weight, before)
    ten = Batch({"x": torch.randn(10, 6)}, None, 10)
    assert list(compensate(pruned, module, groups, kept, [ten], model.call).errors) == ["2"]


def test_no_batch_and_bad_batches():
    model = Given(6)
    module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).eval()
    pruned, groups, kept = halved(module, model)
    with pytest.raises(StageFailed, match="without a batch"):
        compensate(pruned, module, groups, kept, [], model.call)
    bad = Batch({"x": torch.full((40, 6), float("nan"))}, None, 40)
    with pytest.raises(StageFailed, match=r"the weights of 1 cannot be fitted: .* not finite"):
        compensate(pruned, module, groups, kept, [bad], model.call)


@pytest.fixture(scope="module")
def digits():
    """A small network trained on the embedded digits, with batches to fit on and batches to judge by."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for epoch in range(6):
        for index in torch.randperm(1200, generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
    parts = [torch.arange(0, 1200).split(100), torch.arange(1200, len(x)).split(200)]
    fitting, judging = ([Batch({"x": x[i]}, y[i], len(i)) for i in part] for part in parts)
    return net.eval(), fitting, judging


def loss_on(batches, model):
    return lambda module: mean_loss(module, batches, Classification(), model.call)


def test_it_lowers_the_loss_of_a_trained_network(digits):
    net, fitting, judging = digits
    model = Given(1, 8, 8)
    pruned, groups, kept = halved(net, model)
    fitted = copy.deepcopy(pruned)
    done = compensate(fitted, net, groups, kept, fitting, model.call)
    assert list(done.errors) == ["4", "9"]
    chosen, before, after = accept_if_better(pruned, fitted, loss_on(judging, model))
    assert chosen is fitted and after < 0.5 * before


def test_it_is_rejected_where_it_does_not_help(digits):
    net, fitting, judging = digits
    model = Given(1, 8, 8)
    pruned, groups, kept = halved(net, model)
    spoiled = copy.deepcopy(pruned)
    noise = [Batch({"x": 50 * torch.randn_like(b.inputs["x"])}, None, b.size) for b in fitting]
    compensate(spoiled, net, groups, kept, noise, model.call)
    chosen, before, after = accept_if_better(pruned, spoiled, loss_on(judging, model))
    assert chosen is pruned and before <= after
    chosen, _, _ = accept_if_better(pruned, spoiled, lambda m: float("nan") if m is spoiled else 1.0)
    assert chosen is pruned
    chosen, was, became = accept_if_better(pruned, net, lambda m: float("nan") if m is pruned else 1.0)
    assert chosen is net and (was, became) == (float("inf"), 1.0)


def test_a_repair_keeps_what_lowers_the_validation_loss(digits):
    net, fitting, judging = digits
    model, task = Given(1, 8, 8), Classification()
    pruned, groups, kept = halved(net, model)
    before = copy.deepcopy(pruned.state_dict())
    repaired = repair(pruned, net, groups, kept, fitting, judging, task, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    found = [mean_loss(m, judging, task, model.call) for m in (pruned, repaired.module)]
    assert repaired.losses == pytest.approx(found) and found[1] < 0.5 * found[0]


def test_a_repair_leaves_alone_what_it_would_make_worse(digits):
    net, fitting, judging = digits
    model, task = Given(1, 8, 8), Classification()
    pruned, groups, kept = halved(net, model)
    noise = [Batch({"x": 50 * torch.randn_like(b.inputs["x"])}, None, b.size) for b in fitting]
    repaired = repair(pruned, net, groups, kept, noise, judging, task, model)
    assert repaired.module is pruned and repaired.losses[0] == repaired.losses[1]
    assert any("the validation loss did not fall" in note.message for note in repaired.notes)


def test_the_mean_loss_is_over_samples(digits):
    net, _, judging = digits
    model, task = Given(1, 8, 8), Classification()
    with torch.no_grad():
        whole = [torch.cat([b.inputs["x"] for b in judging]), torch.cat([b.targets for b in judging])]
        expected = float(F.cross_entropy(net(whole[0]), whole[1]))
    assert mean_loss(net, judging, task, model.call) == pytest.approx(expected, rel=1e-4)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[9].weight.mul_(0.5)
        unlabelled = [Batch(b.inputs, None, b.size) for b in judging]
        p, q = net(whole[0]).softmax(1), other(whole[0]).softmax(1)
        divergence = float((p * (p / q).log()).sum(1).mean())
    assert mean_loss(net, unlabelled, task, model.call, teacher=net) == pytest.approx(0, abs=1e-6)
    assert mean_loss(other, unlabelled, task, model.call, teacher=net) == pytest.approx(divergence, rel=1e-3)
    with pytest.raises(StageFailed, match="no loss without labels"):
        mean_loss(net, unlabelled, task, model.call)
    with pytest.raises(StageFailed, match="no batch"):
        mean_loss(net, [], task, model.call)
