"""MACs, parameters and bytes, counted by hand."""

import pytest
from torch import nn

from deploycompress.pruning.costs import WidthCosts, count
from deploycompress.pruning.discovery import find_groups


def test_a_count_by_hand(networks):
    cost = count(networks["chain"].build(), networks["chain"])
    assert cost["macs"] == 64 * 16 * 27 + 64 * 24 * 16 * 9 + 24 * 5
    assert cost["params"] == 16 * 27 + 2 * 16 + 24 * 144 + 24 + 24 + 24 * 5 + 5
    # float32 parameters, the two running statistics, and the counter of batches in int64
    assert cost["size"] == 4 * (cost["params"] + 32) + 8


def test_costs_as_a_function_of_widths(networks):
    model = networks["chain"]
    module = model.build()
    costs = WidthCosts(module, find_groups(module, model).groups, model)
    found = costs.at({"0": 8, "3": 12})
    assert found["macs"] == 64 * 8 * 27 + 64 * 12 * 8 * 9 + 12 * 5
    assert found["params"] == 8 * 27 + 2 * 8 + 12 * 72 + 12 + 12 + 12 * 5 + 5
    assert found["channels"] == 20
    assert costs.full["channels"] == 40


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3)

    def forward(self, x):
        return self.up(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.layer(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize(
    ("make", "shape", "macs"),
    [
        (Transposed, (3, 8, 8), 64 * 6 * 9),
        (Twice, (8,), 2 * 64),
        (Attention, (5, 8), 5 * 4 * 64 + 2 * 25 * 8),  # four projections; queries times keys, times values
    ],
)
def test_macs_of_other_layers(given, make, shape, macs):
    model = given(make, shape)
    assert count(model.build(), model)["macs"] == macs


def test_counting_leaves_the_model_as_it_was(networks):
    model = networks["chain"]
    module = model.build().train()
    count(module, model)
    assert module.training and not any(part._forward_hooks for part in module.modules())
    assert all(p.grad is None for p in module.parameters())
