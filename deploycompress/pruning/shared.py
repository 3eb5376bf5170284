"""Parameters that several layers use: what they have in common is tied, and stays one tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import nn

from deploycompress.pruning.labels import FREE
from deploycompress.pruning.layers import Axis, Layer, describe
from deploycompress.pruning.places import Places

Holders = dict[
    nn.Parameter, list[tuple[str, str]]
]  # parameter -> (path of a layer, attribute), for each that has it


def holders(module: nn.Module) -> Holders:
    """Who has each parameter that more than one layer has."""
    found: Holders = defaultdict(list)
    for name, part in module.named_modules():
        for leaf, parameter in part.named_parameters(recurse=False):
            found[parameter].append((name, leaf))
    return {parameter: places for parameter, places in found.items() if len(places) > 1}


def shared_layers(module: nn.Module) -> dict[str, str]:
    """Layer -> another layer that uses one of its parameters too."""
    found: dict[str, str] = {}
    for places in holders(module).values():
        (first, _), *others = places
        for other, _ in others:
            found |= {other: first, first: other}
    return found


def tie_shared(module: nn.Module, places: Places) -> None:
    """One dimension of a shared parameter has the same channels in every layer: those of a language model's
    embedding are what its head reads. A dimension that is nobody's channels in one of the layers stays."""
    for parameter, who in holders(module).items():
        described = [(name, _dims(module.get_submodule(name), leaf)) for name, leaf in who]
        for dim, size in enumerate(parameter.shape):
            labels = [places.labels.get((name, dims[dim])) for name, dims in described if dim in dims]
            known = [own for own in labels if own is not None and len(own) == size]
            others = "".join(f" and {name}" for name, _ in described[1:])
            reason = f"{described[0][0]}{others} share a weight and do not both have them"
            if len(known) < len(described):
                for own in known:
                    places.ties.freeze(own, reason)
            for own in known[1:]:
                places.ties.tie(known[0], own)
                for one, other in ((known[0], own), (own, known[0])):
                    places.ties.freeze(other[(one == FREE) & (other != FREE)], reason)


def tie_again(module: nn.Module, before: Holders) -> None:
    """After cutting, which makes a parameter of each layer's own: one again. All were cut alike."""
    for places in before.values():
        name, leaf = places[0]
        kept = getattr(module.get_submodule(name), leaf)
        for other, its in places[1:]:
            part = module.get_submodule(other)
            assert torch.equal(getattr(part, its), kept), f"{other}.{its} was not cut like {name}.{leaf}"
            setattr(part, its, kept)


def _dims(part: nn.Module, leaf: str) -> Mapping[int, Axis]:
    """Dimension of a layer's parameter -> the axis that it is."""
    layer = describe(part)
    if not isinstance(layer, Layer) or layer.runs > 1:
        return {}
    return {dim: axis for axis, dim in layer.tensors.get(leaf, {}).items()}
