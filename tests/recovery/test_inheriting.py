"""What a student takes over from a deeper source."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploycompress.errors import ConfigError
from deploycompress.recovery.inheriting import inherit


class Deep(nn.Module):
    """Every layer's weights tell its number."""

    def __init__(self, layers: int, width: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.layers = nn.ModuleList(nn.ModuleDict({"inner": nn.BatchNorm1d(width)}) for _ in range(layers))
        self.head = nn.Linear(width, 2)
        with torch.no_grad():
            for number, layer in enumerate(self.layers):
                layer["inner"].running_mean.fill_(number)
                layer["inner"].weight.fill_(number)


def numbers(net: Deep) -> list[int]:
    assert all(layer["inner"].weight.equal(layer["inner"].running_mean) for layer in net.layers)
    return [int(layer["inner"].weight[0]) for layer in net.layers]


@pytest.mark.parametrize(
    ("few", "many", "expected"),
    [(6, 12, [0, 2, 4, 7, 9, 11]), (2, 4, [0, 3]), (1, 3, [0]), (3, 3, [0, 1, 2]), (4, 2, [0, 1, 2, 3])],
)
def test_evenly_spread_layers_are_taken(few, many, expected):
    """Twelve layers to six as DistilBERT was made; those that the source lacks stay as they are."""
    student, source = Deep(few), Deep(many)
    taken, total = inherit(student, source)
    assert numbers(student) == expected
    assert student.head.weight.equal(source.head.weight) and student.first.bias.equal(source.first.bias)
    assert (taken, total) == (4 + 5 * min(few, many), 4 + 5 * few)
    student.head.weight.data.zero_()
    assert source.head.weight.any(), "a copy, not the same tensor"


def test_a_layer_of_another_shape_keeps_its_own():
    student, source = Deep(1, width=5), Deep(2)
    head = student.head.weight.clone()
    with pytest.raises(
        ConfigError, match=r"distill\.inherit: no layer of the student has the path and the shape"
    ):
        inherit(student, source)
    source.head = nn.Linear(5, 2)
    assert inherit(student, source)[0] == 2 and not student.head.weight.equal(head)
    assert student.first.weight.shape == (5, 3)
