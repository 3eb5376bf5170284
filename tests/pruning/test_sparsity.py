"""Which single weights become zero."""

import pytest
import torch
from torch import nn

from deploycompress.pruning.sparsity import Weights, by_magnitude, close, find_weights, two_of_four


def test_the_smallest_weights_of_the_whole_network_go():
    weights = {"a": torch.tensor([[1.0, -8.0], [3.0, -4.0]]), "b": torch.tensor([[0.5, -2.0, 6.0, 7.0]])}
    masks = by_magnitude(weights, 0.5, "global")
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [[False, False, True, True]]
    masks = by_magnitude(weights, 0.5, "layer")
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert by_magnitude({"a": weights["a"]}, 0.25, "global")["a"].tolist() == [[False, True], [True, True]]
    assert [m.logical_not().sum().item() for m in by_magnitude(weights, 0.75, "layer").values()] == [3, 3]
    assert by_magnitude({}, 0.5, "global") == {}


def test_of_equal_weights_exactly_the_share_goes():
    masks = by_magnitude({"a": torch.ones(5, 4)}, 0.35, "global")
    assert masks["a"].logical_not().sum() == 7


def test_what_is_zero_already_stays_zero():
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    first = by_magnitude({"a": weight}, 0.3, "layer")["a"]
    second = by_magnitude({"a": weight * first}, 0.6, "layer")["a"]
    assert not second[~first].any()


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Linear(8, 6), 1),
        (nn.Conv2d(8, 6, 3), 1),
        (nn.Conv2d(16, 6, 1, groups=2), 1),
        (nn.ConvTranspose2d(8, 6, 3), 0),
    ],
)
def test_two_of_every_four_along_the_input_dimension(layer, dim):
    weight = layer.weight.detach().clone()
    masks, whole = two_of_four(find_weights(nn.Sequential(layer)))
    assert whole == () and masks["0.weight"].shape == weight.shape
    runs = weight.movedim(dim, -1).reshape(-1, 4)
    stays = masks["0.weight"].movedim(dim, -1).reshape(-1, 4)
    assert (stays.sum(1) == 2).all()
    smallest_kept = runs.abs().masked_fill(~stays, torch.inf).amin(1)
    assert (smallest_kept >= runs.abs().masked_fill(stays, 0).amax(1)).all()


def test_layers_without_runs_of_four_are_left_whole():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    masks, whole = two_of_four(find_weights(module))
    assert [*masks] == ["2.weight"]
    assert [(u.layer, u.reason) for u in whole] == [
        ("0", "its input dimension is 3, not a multiple of 4"),
        ("1", "its input dimension is 1, not a multiple of 4"),
    ]
    assert two_of_four(Weights({}, {}, ())) == ({}, ())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.norm = nn.Embedding(7, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.again, self.head = nn.Linear(8, 8), nn.Linear(8, 7, bias=False)
        self.head.weight, self.again.weight = self.embedding.weight, self.up.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


def test_biases_norms_and_embeddings_stay():
    found = find_weights(Tied())
    assert [*found.tensors] == ["up.weight"]
    assert [(u.layer, u.reason) for u in found.whole] == [
        ("head", "shares its weight with the embedding embedding"),
        ("normed", "its weight is computed from other parameters"),
    ]
    assert [(u.layer, u.reason) for u in find_weights(nn.Sequential(nn.Linear(4, 4)), ["*"]).whole] == [
        ("0", "excluded by the configuration")
    ]
    assert [*find_weights(nn.Linear(4, 4)).tensors] == ["weight"]


def test_what_is_no_kind_of_layer_that_gets_zeros_is_named():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(4, 4))

    found = find_weights(nn.Sequential(nn.MultiheadAttention(8, 2), Table(), nn.LayerNorm(8)))
    assert [*found.tensors] == ["0.out_proj.weight"]
    assert [(u.layer, u.reason) for u in found.whole] == [
        ("0", "its projections share one tensor"),
        ("1", "Table is not a kind of layer that gets zeros"),
    ]


def test_closing_sets_zeros_and_nothing_else():
    layer = nn.Linear(4, 2)
    before = layer.weight.detach().clone()
    mask = torch.tensor([[True, False, True, True], [False, True, True, True]])
    close(layer, {"weight": mask})
    assert torch.equal(layer.weight, before * mask) and layer.weight.requires_grad
