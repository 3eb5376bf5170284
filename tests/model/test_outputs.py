"""Names of everything a forward pass may give back."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deploycompress.errors import ConfigError
from deploycompress.model.source import named_outputs

T = torch.zeros(1)
Pair = namedtuple("Pair", "left right")


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (T, ["output"]),
        ((T, T), ["output_0", "output_1"]),
        ([T], ["output_0"]),
        (OrderedDict(out=T, aux=None), ["out"]),
        ({"hidden": (T, T), "a": {"b": T}}, ["hidden.0", "hidden.1", "a.b"]),
        ((T, {"x": T}), ["output_0", "output_1.x"]),
        (Pair(T, T), ["left", "right"]),
        (Answer(T), ["logits"]),
        ({"logits": T, "cache": object()}, ["logits"]),
    ],
)
def test_every_tensor_gets_a_name(raw, names):
    assert list(named_outputs(raw)) == names


def test_no_tensor_at_all():
    with pytest.raises(ConfigError, match="forward gave back dict without a tensor"):
        named_outputs({"a": 1})
