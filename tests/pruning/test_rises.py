"""What a trial measures: the rise of the loss after statistics, least squares and a short training."""

import copy

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.data.tasks.classification import Classification
from deploycompress.data.tasks.regression import Regression
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.pruning.apply import apply
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import choose, on_grid
from deploycompress.pruning.rises import RATES, RecoveredRises, Rises, train_towards


class Direct:
    """Calls a module of one input and one output."""

    def call(self, module, inputs):
        return {"y": module(inputs["x"])}


def prepared(network, count=12):
    module = network.build()
    with torch.no_grad():  # an answer that one can tell from another
        [part for part in module.modules() if isinstance(part, nn.Linear)][-1].weight.mul_(20)
    generator = torch.Generator().manual_seed(1)
    batches = [Batch({"x": torch.randn(32, 3, 8, 8, generator=generator)}, None, 32) for _ in range(count)]
    reestimate_batchnorm(module, [b.inputs for b in batches[4:]], network.call)
    group = on_grid(find_groups(module, network).groups, 1)[0]
    kept = choose([group], {group.id: torch.arange(float(group.width))}, {group.id: group.width // 2})
    pruned = copy.deepcopy(module)
    apply(pruned, [group], kept)
    return module, group, kept, pruned, batches[4:], batches[:4]


def test_recovery_shows_what_comes_back(networks):
    network = networks["chain"]
    module, group, kept, pruned, fitting, judging = prepared(network)
    bare = Rises(module, fitting, judging, Classification(), network).of(copy.deepcopy(pruned))
    rises = RecoveredRises(module, fitting, judging, Classification(), network)
    fitted = rises.of(copy.deepcopy(pruned), [group], kept)  # no rate yet: by least squares alone
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    assert rises.find_rate(pruned, [group], kept)[0] in RATES
    assert all(torch.equal(before[name], value) for name, value in pruned.state_dict().items())
    trained = rises.of(copy.deepcopy(pruned), [group], kept)
    assert 0 < trained < 0.5 * fitted and fitted < 0.2 * bare
    assert rises.of(copy.deepcopy(pruned), [group], kept) == trained
    assert rises.of(copy.deepcopy(module)) == 0  # what recovery does to a whole network is no rise


def test_a_rate_that_breaks_the_network_is_not_taken(networks, monkeypatch):
    network = networks["chain"]
    module, group, kept, pruned, fitting, judging = prepared(network)
    monkeypatch.setattr("deploycompress.pruning.rises.RATES", (1e30,))
    rises = RecoveredRises(module, fitting, judging, Classification(), network)
    assert rises.find_rate(pruned, [group], kept) == (0, "")


def test_a_network_without_gradients_is_not_trained(networks):
    network = networks["chain"]
    module, group, kept, pruned, fitting, judging = prepared(network)

    class Frozen:
        @staticmethod
        def call(part, inputs):
            with torch.no_grad():
                return network.call(part, inputs)

    rises = RecoveredRises(module, fitting, judging, Classification(), Frozen)
    rate, reason = rises.find_rate(pruned, [group], kept)
    assert rate == 0 and reason.startswith("RuntimeError: element 0 of tensors does not require grad")
    assert rises.of(pruned, [group], kept) > 0


def test_the_steps_of_a_short_training():
    """y = w x, half the mean squared distance; with momentum 0.9 by Nesterov, the rate falling by a straight line."""
    part = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        part.weight.fill_(1.0)
    batch, wanted = Batch({"x": torch.tensor([[2.0]])}, None, 1), {"y": torch.tensor([[0.0]])}
    train_towards(part, [batch], [wanted], Direct().call, rate=0.1, classes=True, steps=2)
    first = 1.0 - 0.1 * (4.0 + 0.9 * 4.0)
    velocity = 0.9 * 4.0 + 4.0 * first
    assert float(part.weight.detach()) == pytest.approx(
        first - 0.05 * (4.0 * first + 0.9 * velocity), rel=1e-5
    )


def test_what_works_as_in_training_while_a_network_is_trained():
    seen = []
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    network[1].register_forward_hook(lambda part, *_: seen.append((part.training, network[2].training)))
    batch = Batch({"x": torch.randn(8, 4)}, None, 8)
    train_towards(
        network, [batch], [{"y": torch.randn(8, 3)}], Direct().call, rate=0.01, classes=True, steps=3
    )
    assert seen == [(True, False)] * 3 and not any(part.training for part in network.modules())


def test_outputs_that_are_no_numbers_to_learn_are_left_out():
    class Answers(Direct):
        def call(self, module, inputs):
            logits = module(inputs["x"])
            return {"class": logits.argmax(1), "y": logits}

    part, generator = nn.Linear(3, 4), torch.Generator().manual_seed(0)
    batches = [Batch({"x": torch.randn(16, 3, generator=generator)}, None, 16) for _ in range(3)]
    other = copy.deepcopy(part)
    with torch.no_grad():
        other.weight.zero_()
    rises = RecoveredRises(part, batches[1:], batches[:1], Classification(output="y"), Answers())
    bare = rises.of(copy.deepcopy(other))
    assert rises.find_rate(other, [], {})[0] in RATES
    assert rises.of(other) < bare


def test_memory_that_runs_out_is_no_reason_not_to_train(networks, monkeypatch):
    network = networks["chain"]
    module, group, kept, pruned, fitting, judging = prepared(network)

    def full(*given):
        raise torch.OutOfMemoryError("no memory is left")

    rises = RecoveredRises(module, fitting, judging, Classification(), network)
    monkeypatch.setattr("deploycompress.pruning.rises.train_towards", full)
    with pytest.raises(torch.OutOfMemoryError):
        rises.find_rate(pruned, [group], kept)


def test_columns_of_numbers_are_not_taken_for_classes():
    """Shifted by 3 in both columns: the same classes by a softmax, and a large error."""
    part, generator = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    batches = [Batch({"x": torch.randn(16, 3, generator=generator)}, None, 16) for _ in range(6)]
    shifted = copy.deepcopy(part)
    with torch.no_grad():
        shifted.bias += 3
    rises = RecoveredRises(part, batches[2:], batches[:2], Regression(), Direct())
    bare = rises.of(copy.deepcopy(shifted))
    assert bare == pytest.approx(4.5, rel=1e-4)
    assert rises.find_rate(shifted, [], {})[0] in RATES
    assert rises.of(shifted) < 0.9 * bare
    as_classes = Rises(part, batches[2:], batches[:2], Classification(), Direct())
    assert as_classes.of(copy.deepcopy(shifted)) == pytest.approx(0.0, abs=1e-5)
