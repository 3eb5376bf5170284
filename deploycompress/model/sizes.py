"""Which attributes of a module are sizes, and which values a checkpoint may give them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# What torch's own layers and attention modules call their sizes. Nothing else of torch's modules is ever set.
OF_LAYERS = frozenset(
    {
        "in_channels",
        "out_channels",
        "groups",
        "in_features",
        "out_features",
        "in1_features",
        "in2_features",
        "num_features",
        "num_channels",
        "num_groups",
        "num_parameters",
        "num_embeddings",
        "embedding_dim",
        "normalized_shape",
        "embed_dim",
        "kdim",
        "vdim",
        "head_dim",
        "num_heads",
        "hidden_size",
        "input_size",
        "proj_size",
        "nhead",
    }
)
LARGEST = 2**24  # of a size: far above any layer, far below what would exhaust memory by itself
MOST_ENTRIES = 64  # of a tuple or list of sizes
# Where a smaller number means more work: more windows, more positions, more tokens.
DIVISORS = re.compile(
    r"stride|dilat|kernel|patch|window|pool|ratio|reduc|down|scale|factor|resolution|interval|grid|block_size|halo"
)
_CONTAINERS = {"torch.nn.modules.module", "torch.nn.modules.container"}


def is_size(value: Any) -> bool:
    """A positive number, or a tuple or list of such."""
    sizes = value if type(value) in (tuple, list) and value else (value,)
    return len(sizes) <= MOST_ENTRIES and all(type(v) is int and 1 <= v <= LARGEST for v in sizes)


def may_be_set(module: nn.Module, name: str) -> bool:
    """Whether attribute ``name`` of ``module`` is one that a pruned model may have smaller than a fresh build.

    The answer holds for documents from strangers too, together with ``shrinks``, for these reasons. Only a
    positive number, or a tuple or list of such, that the fresh build keeps in a public attribute of that very
    module is replaced by another of the same form: no code, no name, no path, no flag (those are bool, str or
    None) can be put anywhere. A number only falls, so that a loop ends sooner and a tensor made of it is
    smaller. Numbers that divide (a stride, a patch, a window) would mean more work when they fall: those of
    torch's layers are not in ``OF_LAYERS``, and by other names they are refused as far as the name says so.
    What is left to a stranger is a model that is wrong or, by a divisor with another name, slow; the first
    he has by choosing the weights, and the probe's outputs and every tensor's form are checked as well.
    """
    if name.startswith("_") or name == "training":
        return False
    homes = {kind.__module__ for kind in type(module).__mro__} - _CONTAINERS
    if any(home.startswith("torch.nn.") for home in homes):
        return name in OF_LAYERS
    return DIVISORS.search(name.lower()) is None


def same_form(old: Any, new: Any) -> bool:
    """Whether both are sizes of one type, and equally many."""
    if not (is_size(old) and is_size(new) and type(old) is type(new)):
        return False
    return type(old) is int or len(old) == len(new)


def shrinks(old: Any, new: Any) -> bool:
    """Whether no number of ``new`` is larger than that of ``old``, which is of the same form."""
    pairs = [(old, new)] if type(old) is int else zip(old, new, strict=True)
    return all(b <= a for a, b in pairs)
