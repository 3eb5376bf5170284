"""Attention with any number of heads computes what the class it stands in for computes with all of them."""

import copy

import pytest
import torch
from torch import nn

from deploycompress.errors import StageFailed
from deploycompress.model.architecture import Architecture, describe
from deploycompress.model.assembly import edit
from deploycompress.model.attention import allow_any_heads, replacement


def both(module, *arguments, **named):
    """What ``module`` gives, and what its replacement gives."""
    other = copy.deepcopy(module)
    allow_any_heads(other)
    assert type(other) is replacement(module) is not type(module)
    assert isinstance(other, type(module)) and replacement(other) is None
    with torch.no_grad():
        return module(*arguments, **named), other(*arguments, **named)


def hidden(*shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., -2:] = True
    return mask


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "named",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": hidden(3, 7)},
        {"attn_mask": hidden(5, 7), "key_padding_mask": hidden(3, 7), "need_weights": False},
        {"attn_mask": torch.randn(12, 5, 7)},
        {"attn_mask": torch.randn(5, 7), "is_causal": True, "need_weights": False},
    ],
)
def test_multihead_attention(batch_first, named):
    module = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    query, key, value = torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    if not batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    (output, weights), (other, others_weights) = both(module, query, key, value, **named)
    torch.testing.assert_close(other, output)
    assert (weights is None) == (others_weights is None)
    if weights is not None:
        torch.testing.assert_close(others_weights, weights)


def test_multihead_attention_of_one_sample_without_biases():
    module = nn.MultiheadAttention(16, 4, bias=False).eval()
    x = torch.randn(5, 16)
    (output, weights), (other, others_weights) = both(module, x, x, x)
    torch.testing.assert_close(other, output)
    torch.testing.assert_close(others_weights, weights)


@pytest.mark.parametrize("version", ["ShiftedWindowAttention", "ShiftedWindowAttentionV2"])
@pytest.mark.parametrize(
    ("shift", "size"),
    [([0, 0], (8, 8)), ([2, 2], (8, 12)), ([2, 1], (7, 9)), ([2, 2], (4, 8)), ([0, 2], (8, 8))],
)
def test_windows_of_swin(version, shift, size):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    module = getattr(swin, version)(16, [4, 4], shift, 4).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    output, other = both(module, torch.randn(2, *size, 16))
    torch.testing.assert_close(other, output, rtol=1e-4, atol=1e-4)


def test_grids_of_maxvit():
    maxvit = pytest.importorskip("torchvision.models.maxvit")
    module = maxvit.RelativePositionalMultiHeadAttention(16, 4, 9).eval()
    output, other = both(module, torch.randn(2, 3, 9, 16))
    torch.testing.assert_close(other, output)


def test_a_module_that_needs_none_stays_what_it_is():
    module = nn.Linear(2, 2)
    allow_any_heads(module)
    allow_any_heads(None)
    assert type(module) is nn.Linear and replacement(module) is None


def test_only_the_class_that_stands_in_is_put_in_place():
    built, changed = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
    allow_any_heads(changed)
    architecture = describe(changed, built)
    loaded = nn.MultiheadAttention(8, 2)
    edit(loaded, architecture)
    assert type(loaded) is type(changed)
    document = architecture.model_dump()
    document["edits"][0]["type"] = "torch.nn.modules.linear.Linear"
    with pytest.raises(
        StageFailed, match=r"says that .* is a torch\.nn\.modules\.linear\.Linear; the model has a"
    ):
        edit(nn.MultiheadAttention(8, 2), Architecture.model_validate(document))
