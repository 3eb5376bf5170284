"""The dependency groups of a model, each one tried out; what cannot be pruned is named with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from deploycompress.contracts import Model
from deploycompress.pruning.attention.trial import Attention, find_attention
from deploycompress.pruning.groups import ChannelGroup, Found, Unpruned
from deploycompress.pruning.labelled_groups import labelled_groups
from deploycompress.pruning.layers import Layer, describe, is_transposed_linear
from deploycompress.pruning.screening import screen

ROOTS = (_ConvNd, nn.Linear, nn.MultiheadAttention)


def find_groups(module: nn.Module, model: Model, exclude: Sequence[str] = ()) -> Found:
    """Every group of ``module`` that can be pruned: traced, checked and tried out on random inputs.

    ``exclude``: patterns (``layer4.*``) of layers whose output channels stay. Nothing is raised for a model
    that cannot be pruned: all its layers are then left whole.
    """
    attention = find_attention(module, model)
    roots = [name for name, _ in producing_layers(module)]
    candidates, unpruned = labelled_groups(module, model, roots, attention, exclude)
    good, failed = screen(module, model, candidates)
    whole = (*unpruned, *_recurrent(module), *_embeddings(module, good), *failed)
    every = [_explained(item, attention) for item in whole]
    order = {name: i for i, (name, _) in enumerate(module.named_modules())}
    return Found(tuple(good), tuple(sorted(every, key=lambda u: order[u.layer])))


def producing_layers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Path and output width of every convolution and linear layer, in order; of packed attention too."""
    for name, part in module.named_modules():
        if isinstance(part, ROOTS) or is_transposed_linear(part):
            layer = describe(part)
            if isinstance(layer, Layer):
                yield name, layer.widths["out"]
            elif not isinstance(part, nn.MultiheadAttention):
                yield name, int(part.weight.shape[0])


def _explained(item: Unpruned, attention: Sequence[Attention]) -> Unpruned:
    """Layers of attention whose heads stay have that reason, whatever the labels made of them."""
    for found in attention:
        if found.reason and f"{item.layer}.".startswith(f"{found.path}."):
            return Unpruned(item.layer, f"attention: {found.reason}")
    return item


def _embeddings(module: nn.Module, groups: Sequence[ChannelGroup]) -> Iterator[Unpruned]:
    """Those whose vectors keep their length; in a transformer they go with the stream that layers add to."""
    pruned = {member.layer for group in groups for member in group.members}
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and name not in pruned:
            yield Unpruned(
                name, "an embedding is narrowed only with a layer that writes to the same channels"
            )


def _recurrent(module: nn.Module) -> Iterator[Unpruned]:
    """Recurrent layers are left whole."""
    for name, part in module.named_modules():
        if isinstance(part, nn.RNNBase):
            yield Unpruned(name, str(describe(part)))
