"""Scores against real gates and figures by hand."""

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.pruning.criteria.activation import Activation
from deploycompress.pruning.criteria.bn_scale import BnScale
from deploycompress.pruning.criteria.fisher import Fisher
from deploycompress.pruning.criteria.fpgm import Fpgm
from deploycompress.pruning.criteria.group_norm import GroupNorm
from deploycompress.pruning.criteria.hessian import Hessian
from deploycompress.pruning.criteria.lamp import Lamp
from deploycompress.pruning.criteria.magnitude import Magnitude
from deploycompress.pruning.criteria.random import Random
from deploycompress.pruning.criteria.taylor import Taylor
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.gates import gate_curvatures, gate_gradients
from deploycompress.pruning.scores import score
from deploycompress.registry import CRITERIA


class Squares:
    """A task without labels of its own: the mean of squared outputs times the target."""

    def loss(self, outputs, batch):
        return (outputs.main.square().sum(1) * batch.targets).mean()


def batches(model, count=2, labels=True):
    for i in range(count):
        inputs = {k: v if not v.is_floating_point() else v + 0.1 * i for k, v in model.example(4).items()}
        yield Batch(inputs, torch.tensor([1.0, 2, 3, 4 + i]) if labels else None, 4)


@pytest.fixture
def found(network):
    module = network.build()
    return network, module, find_groups(module, network).groups


def gated_loss(model, module, group, channel, factor, batch):
    """The loss with what every layer reads of one channel scaled by ``factor``."""
    from deploycompress.pruning.layers import describe

    scaled = type(module)()
    scaled.load_state_dict(module.state_dict())
    scaled = scaled.double().eval()
    with torch.no_grad():
        for member in group.members:
            part = scaled.get_submodule(member.layer) if member.dim is None else None
            if member.axis != "in" or part is None:
                continue
            layer = describe(part)
            weight, dim = part.weight, layer.tensors["weight"]["in"]
            for position in member.at(torch.tensor([channel])).tolist():
                if layer.runs == 1:
                    weight.select(dim, position).mul_(factor)
                elif dim == 1:
                    size, rows = layer.widths["in"] // layer.runs, weight.shape[0] // layer.runs
                    run, inside = divmod(position, size)
                    weight[run * rows : (run + 1) * rows, inside] *= factor
                else:
                    weight[position] *= factor
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()}
        output = next(iter(model.call(scaled, inputs).values()))
        return float((output.square().sum(1) * batch.targets.double()).mean())


def test_gate_gradients_are_those_of_a_real_gate(found):
    model, module, groups = found
    batch = next(batches(model))
    (gradients,) = gate_gradients(module, groups, [batch], Squares(), model.call)
    step = 1e-4
    for group in groups:
        for channel in (0, group.width - 1):
            up = gated_loss(model, module, group, channel, 1 + step, batch)
            down = gated_loss(model, module, group, channel, 1 - step, batch)
            expected = (up - down) / (2 * step)
            assert float(gradients[group.id][channel]) == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_taylor_is_the_mean_over_batches_without_its_sign(networks):
    model = networks["residual"]
    module = model.build()
    groups = find_groups(module, model).groups
    scores = Taylor()(module, groups, batches(model), Squares(), model.call)
    each = list(gate_gradients(module, groups, batches(model), Squares(), model.call))
    for group in groups:
        mean = torch.stack([g[group.id] for g in each]).mean(0)
        assert torch.allclose(scores[group.id], mean.abs())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("name", ["chain", "split"])
def test_without_labels_they_are_drawn_from_the_model(networks, name):
    model = networks[name]
    module = model.build()
    groups = find_groups(module, model).groups
    first = Taylor()(module, groups, batches(model, labels=False), Squares(), model.call)
    again = Taylor()(module, groups, batches(model, labels=False), Squares(), model.call)
    assert all(float(first[g.id].max()) > 0 and torch.equal(first[g.id], again[g.id]) for g in groups)


def test_without_labels_and_classes(given):
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    model = given(Dense, (3, 8, 8))
    module = model.build()
    groups = find_groups(module, model).groups
    scores = Taylor()(module, groups, batches(model, labels=False), Squares(), model.call)
    assert float(scores["a"].max()) > 0


def test_magnitude_by_hand(networks):
    model = networks["residual"]
    module = model.build()
    groups = find_groups(module, model).groups
    l2 = Magnitude()(module, groups, (), None, model.call)
    l1 = Magnitude("l1")(module, groups, (), None, model.call)
    main, down = module.main.weight.flatten(1).double(), module.down.weight.flatten(1).double()
    assert torch.allclose(l2["down"], (main.norm(dim=1) + down.norm(dim=1)) / 2)
    assert torch.allclose(l1["down"], (main.abs().sum(1) + down.abs().sum(1)) / 2)
    assert torch.allclose(l2["a"], module.a.weight.flatten(1).double().norm(dim=1))


def test_fisher_is_half_the_mean_square_over_batches(networks):
    model = networks["residual"]
    module = model.build()
    groups = find_groups(module, model).groups
    scores = Fisher()(module, groups, batches(model), Squares(), model.call)
    each = list(gate_gradients(module, groups, batches(model), Squares(), model.call))
    for group in groups:
        squares = torch.stack([g[group.id].square() for g in each])
        assert torch.allclose(scores[group.id], squares.mean(0) / 2)


def test_group_norm_by_hand(networks):
    model = networks["chain"]
    module = model.build()
    groups = find_groups(module, model).groups
    scores = GroupNorm()(module, groups, (), None, model.call)
    made, read = module[0].weight.double(), module[3].weight.double()
    expected = (made.flatten(1).square().sum(1) + read.transpose(0, 1).flatten(1).square().sum(1)).sqrt()
    assert torch.allclose(scores["0"], expected)


def test_lamp_by_hand(networks):
    model = networks["chain"]
    module = model.build()
    groups = find_groups(module, model).groups
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].weight[:3, 0, 0, 0] = torch.tensor([1.0, 3.0, 2.0])
    scores = Lamp()(module, groups, (), None, model.call)["0"]
    assert scores[:4].tolist() == pytest.approx([1 / 14, 1.0, 4 / 13, 0.0])


def test_random_depends_on_the_seed_and_the_group_alone(networks):
    model = networks["residual"]
    module = model.build()
    groups = find_groups(module, model).groups
    every = Random()(module, groups, (), None, model.call)
    one = Random()(module, groups[1:2], (), None, model.call)
    other = Random(seed=1)(module, groups, (), None, model.call)
    id = groups[1].id
    assert torch.equal(every[id], one[id]) and not torch.equal(every[id], other[id])


class TwoLayers(nn.Sequential):
    def __init__(self, middle=nn.Identity):
        super().__init__(nn.Linear(3, 4), middle(), nn.Linear(4, 2))


def test_curvatures_are_the_diagonal_of_the_hessian(given):
    """L = mean t |B diag(m) a|^2 is quadratic in the gates: its Hessian is 2 mean t (a a^T) * (B^T B)."""
    model = given(TwoLayers, (3,))
    module = model.build()
    groups = find_groups(module, model).groups
    (batch,) = batches(model, 1)
    hidden = module[0](batch.inputs["x"]).detach().double()
    diagonal = (
        2 * (batch.targets[:, None] * hidden.square()).mean(0) * module[2].weight.double().square().sum(0)
    )
    with torch.no_grad():
        module[2].bias.zero_()
        few = [list(gate_curvatures(module, groups, [batch] * 2, Squares(), model.call, 1))]
        (many,) = gate_curvatures(module, groups, [batch], Squares(), model.call, 400)
    assert not torch.allclose(few[0][0]["0"], few[0][1]["0"])  # every draw is another one
    assert torch.allclose(many["0"], diagonal, rtol=0.1)
    scores = Hessian(400)(module, groups, [batch], Squares(), model.call)
    assert torch.allclose(scores["0"], many["0"] / 2, rtol=1e-4)


def test_a_curvature_below_zero_counts_as_none(given):
    model = given(TwoLayers, (3,))
    module = model.build()
    groups = find_groups(module, model).groups
    downwards = [Batch(b.inputs, -b.targets, 4) for b in batches(model)]
    assert float(Hessian()(module, groups, batches(model), Squares(), model.call)["0"].min()) > 0
    assert float(Hessian()(module, groups, downwards, Squares(), model.call)["0"].max()) == 0


def test_attention_has_a_second_derivative(given):
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, self.down(torch.tanh(self.up(x))), x).mean(1)

    model = given(Attentive, (4, 8))
    module = model.build()
    groups = find_groups(module, model).groups
    assert float(Hessian()(module, groups, batches(model), Squares(), model.call)["up"].max()) > 0


@pytest.mark.parametrize("criterion", [Fisher(), Hessian(50)], ids=["fisher", "hessian"])
def test_drawn_labels_rank_channels_by_what_they_say_to_the_answer(given, criterion):
    model = given(TwoLayers, (3,))
    module = model.build()
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[2].weight.copy_(torch.tensor([[1.0, 0, -3, 2], [-1, 0, 3, -2]]))
    groups = find_groups(module, model).groups
    samples = list(batches(model, 20, labels=False))
    assert criterion(module, groups, samples, Squares(), model.call)["0"].argsort().tolist() == [1, 0, 3, 2]


def test_fpgm_by_hand(networks):
    model = networks["chain"]
    module = model.build()
    groups = find_groups(module, model).groups
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].weight[0, 0, 0, 0], module[0].weight[1, 0, 0, 1] = 3.0, 4.0
    scores = Fpgm()(module, groups, (), None, model.call)["0"]
    assert scores[:3].tolist() == pytest.approx([14 * 3 + 5, 14 * 4 + 5, 3 + 4])


def test_fpgm_compares_filters_of_one_run_only(networks):
    model = networks["grouped"]
    module = model.build()
    (group,) = [g for g in find_groups(module, model).groups if g.id == "b"]
    weight = module.b.weight.detach().flatten(1).double()
    expected = sum(
        (weight[0] - weight[k]).norm() for k in range(24) if group.segments[k] == group.segments[0]
    )
    assert group.segment_count > 1
    assert float(Fpgm()(module, [group], (), None, model.call)["b"][0]) == pytest.approx(float(expected))


def test_bn_scale_by_hand(networks):
    model = networks["concat"]
    module = model.build()
    groups = find_groups(module, model).groups
    with torch.no_grad():
        module.norm.weight.copy_(torch.arange(-12.0, 12.0))
    scores = BnScale()(module, groups, (), None, model.call)
    assert scores["a"].tolist() == [12, 11, 10, 9, 8, 7, 6, 5]
    assert scores["b"].tolist() == [4, 3, 2, 1, *range(12)]
    assert torch.equal(
        scores["c"], Magnitude()(module, groups, (), None, model.call)["c"]
    )  # no norm follows it


def test_bn_scale_of_a_model_without_any(networks):
    model = networks["tokens"]
    module = model.build()
    groups = find_groups(module, model).groups
    with pytest.raises(ConfigError, match=r"no batch normalisation with a scale follows any of the 2 groups"):
        BnScale()(module, groups, (), None, model.call)


def test_activation_by_hand(networks):
    model = networks["flat"]
    module = model.build()
    groups = find_groups(module, model).groups
    samples = list(batches(model, labels=False))
    scores = Activation()(module, groups, samples, None, model.call)
    with torch.no_grad():
        read = torch.cat([torch.relu(module.a(b.inputs["x"])) for b in samples]).double()
        second = torch.tanh(module.b(read.flatten(1).float())).double()
    assert torch.allclose(scores["a"], read.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(scores["b"], second.abs().mean(0), rtol=1e-5)


def test_activation_without_data(networks):
    model = networks["chain"]
    module = model.build()
    with pytest.raises(StageFailed, match="no layer that makes or reads 0 is called; are there data"):
        Activation()(module, find_groups(module, model).groups, [], None, model.call)


def test_no_draws():
    with pytest.raises(ValueError, match="draws is 1 or more, received 0"):
        Hessian(0)


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_every_kind_of_group(found, name, labels):
    model, module, groups = found
    if name == "bn_scale" and not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        pytest.skip("the network has no batch normalisation, which has a test of its own")
    criterion = CRITERIA.load(name)()
    worth = {g.id: 1.0 for g in groups}
    scores = score(criterion, module, groups, batches(model, labels=labels), Squares(), model.call, worth)
    assert {id: (s.dtype, tuple(s.shape)) for id, s in scores.items()} == {
        g.id: (torch.float64, (g.width,)) for g in groups
    }


def test_scores_without_a_unit_get_that_of_the_costs(networks):
    model = networks["residual"]
    module = model.build()
    groups = find_groups(module, model).groups
    worth = {g.id: float(i + 1) for i, g in enumerate(groups)}
    scores = score(Magnitude(), module, groups, (), None, model.call, worth)
    assert {g.id: pytest.approx(float(scores[g.id].mean())) for g in groups} == worth


class Fixed:
    comparable = True
    needs_data = True

    def __init__(self, give):
        self.give = give

    def __call__(self, model, groups, batches, task, call):
        return {g.id: self.give(g) for g in groups}


@pytest.mark.parametrize(
    ("give", "error", "message"),
    [
        (lambda g: torch.rand(3), ConfigError, r"criterion Fixed: received the shape \[3\] for 0; expected \[16\]"),
        (lambda g: torch.full((g.width,), float("nan")), StageFailed, "scores of 0 are not all finite"),
        (lambda g: torch.ones(g.width), StageFailed, "all channels of every group have the same score"),
    ],
)  # fmt: skip
def test_scores_that_are_none(networks, give, error, message):
    model = networks["chain"]
    module = model.build()
    groups = find_groups(module, model).groups
    with pytest.raises(error, match=message):
        score(Fixed(give), module, groups, (), None, model.call, {})


def test_a_loss_that_is_not_finite_stops_it(networks):
    model = networks["chain"]
    module = model.build()
    groups = find_groups(module, model).groups
    bad = Batch(model.example(2), torch.tensor([float("nan"), 1.0]), 2)
    with pytest.raises(StageFailed, match="the loss on batch 1 is nan"):
        Taylor()(module, groups, [bad], Squares(), model.call)


def test_no_data_at_all(networks):
    model = networks["chain"]
    module = model.build()
    groups = find_groups(module, model).groups
    with pytest.raises(StageFailed, match="no batch to tell importance from"):
        Taylor()(module, groups, [], Squares(), model.call)


def test_an_unknown_norm():
    with pytest.raises(ValueError, match="norm is l1 or l2, received 'max'"):
        Magnitude("max")
