"""Layers in two factors: how near they are, which rank, which layers."""

import pytest
import torch
from torch import nn

from deploycompress.model.sparse import mark_sparse
from deploycompress.pruning.factorization import (
    apply,
    break_even,
    factorized,
    find_candidates,
    rank_by_energy,
    rank_by_share,
)

F = nn.functional
LAYERS = {
    "linear": (nn.Linear(12, 20), (3, 12)),
    "tokens": (nn.Linear(20, 12, bias=False), (3, 5, 20)),
    "conv": (nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 9, 9)),
    "dilated": (nn.Conv2d(6, 10, (3, 1), padding="same", dilation=2, bias=False), (2, 6, 9, 9)),
    "conv1d": (nn.Conv1d(6, 10, 5), (2, 6, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_two_factors_equal_the_layer(name):
    layer, shape = LAYERS[name]
    out, *inner = layer.weight.shape
    full = min(out, torch.tensor(inner).prod().item())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pair = factorized(layer, full)
    assert torch.allclose(pair(x), layer(x), atol=1e-5)
    assert not torch.allclose(factorized(layer, full // 2)(x), layer(x), atol=1e-2)
    assert pair[0].bias is None and (pair[1].bias is None) == (layer.bias is None)


def test_the_truncated_svd_is_the_nearest_of_its_rank():
    layer = nn.Linear(16, 12)
    pair = factorized(layer, 5)
    values = torch.linalg.svdvals(layer.weight.detach())
    apart = (pair[1].weight @ pair[0].weight - layer.weight).square().sum()
    assert apart.item() == pytest.approx(values[5:].square().sum().item(), rel=1e-4)


def test_ranks_are_multiples_of_eight():
    layer = nn.Linear(256, 256)
    assert break_even(layer) == 128 and break_even(nn.Conv2d(16, 32, 3)) == pytest.approx(144 * 32 / 176)
    assert rank_by_share(layer, 0.5) == 64 and rank_by_share(layer, 0.3) == 32
    assert rank_by_share(layer, 0.01) == 8
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight.diagonal()[:20] = torch.tensor([10.0] * 10 + [1.0] * 10)
    assert rank_by_energy(layer, 0.95) == 16 and rank_by_energy(layer, 0.6) == 8
    assert rank_by_energy(layer, 0.999) == 24


class Asks(nn.Module):
    """One layer's weight is asked for, one is called with a wrapper of its own, one is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.asked, self.idle = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.by_hand, self.narrow = nn.Linear(64, 64), nn.Linear(64, 9)
        self.grouped = nn.Conv1d(64, 64, 1, groups=2)
        self.twice = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.twice.weight
        self.sparse = nn.Linear(64, 64)

    def forward(self, x):
        x = self.asked(self.plain(x).to(self.asked.weight.dtype))
        x = F.linear(x, self.by_hand.weight)
        return self.narrow(self.sparse(self.again(self.twice(self.grouped(x[..., None])[..., 0]))))


def test_each_layer_that_stays_has_its_reason():
    x = torch.randn(2, 64)
    module = Asks().eval()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    mark_sparse(module, ["sparse.weight"])
    found, whole = find_candidates(module, lambda m: m(x), lambda layer: rank_by_share(layer, 0.5))
    assert [(c.layer, c.rank, c.shape) for c in found] == [("plain", 16, (2, 64))]
    reasons = {u.layer: u.reason for u in whole}
    assert "'Sequential' object has no attribute 'weight'" in reasons.pop("asked")
    assert reasons == {
        "idle": "its forward is not called, or not by the module itself",
        "by_hand": "its forward is not called, or not by the module itself",
        "narrow": "two factors of rank 8 cost no less: they do below rank 7.9",
        "grouped": "a grouped convolution is not factorised",
        "twice": "other layers use its weight too",
        "again": "other layers use its weight too",
        "sparse": "its weight is sparse",
    }
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_exclusion_and_other_kinds_of_layers():
    class Own(nn.Linear):
        pass

    module = nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1, padding_mode="circular"), nn.ConvTranspose2d(64, 64, 3), Own(10, 64)
    )
    forward = lambda m: m(torch.randn(1, 32, 8, 8))  # noqa: E731
    found, whole = find_candidates(module, forward, lambda layer: 8, ["0"])
    assert not found
    assert [u.reason for u in whole] == [
        "excluded by the configuration",
        "a ConvTranspose2d is not factorised",
        "a Own is not factorised",
    ]
    _, whole = find_candidates(module, forward, lambda layer: 8)
    assert whole[0].reason == "a convolution that pads with other than zeros is not factorised"


def test_applied_in_place():
    module = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 16)))
    x = torch.randn(2, 16)
    expected = module(x)
    apply(module, {"0": 16, "1.1": 16})
    assert torch.allclose(module(x), expected, atol=1e-5)
    assert [type(p).__name__ for p in module.modules()].count("Linear") == 4
