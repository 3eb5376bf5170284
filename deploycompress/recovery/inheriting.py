"""A student's first weights: those of the source that teaches it, where they fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from deploycompress.errors import ConfigError

STACKS = (nn.ModuleList, nn.Sequential)


def inherit(student: nn.Module, source: nn.Module) -> tuple[int, int]:
    """Give every layer of ``student`` the weights of its counterpart, in place; how many tensors of how many.

    The counterpart has the same path. Of a stack that is longer in the source, evenly spread layers from the first to
    the last are taken: of BERT's twelve, for six, 0, 2, 4, 7, 9 and 11, as Sanh et al. did ("DistilBERT, a distilled
    version of BERT", 2019, section 3: one layer out of two). A layer one of whose tensors has another shape there
    keeps its own. Raises ConfigError where no layer fits.
    """
    theirs = dict(source.named_modules())
    taken = total = 0
    with torch.no_grad():
        for path, layer in student.named_modules():
            own = dict(_tensors(layer))
            total += len(own)
            found = dict(_tensors(theirs.get(_counterpart(path, student, source), nn.Identity())))
            if own.keys() <= found.keys() and all(own[name].shape == found[name].shape for name in own):
                for name, tensor in own.items():
                    tensor.copy_(found[name])
                taken += len(own)
    if not taken:
        raise ConfigError(
            "distill.inherit: no layer of the student has the path and the shape of one of its source; expected a "
            "student of the same build with fewer layers: leave inherit out, or give it student.weights"
        )
    return taken, total


def _counterpart(path: str, student: nn.Module, source: nn.Module) -> str:
    """The path in ``source`` of what the layer at ``path`` of ``student`` corresponds to."""
    own: nn.Module | None = student
    other: nn.Module | None = source
    found = []
    for part in path.split(".") if path else ():
        name = part
        if isinstance(own, STACKS) and isinstance(other, STACKS) and len(other) > len(own):
            name = str(_spread(int(part), len(own), len(other))) if part.isdigit() else part
        found.append(name)
        own, other = _child(own, part), _child(other, name)
    return ".".join(found)


def _child(module: nn.Module | None, name: str) -> nn.Module | None:
    return None if module is None else dict(module.named_children()).get(name)


def _spread(index: int, few: int, many: int) -> int:
    """Position ``index`` of ``few``, evenly spread over ``many`` with both ends."""
    return 0 if few == 1 else round(index * (many - 1) / (few - 1))


def _tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those of the layer itself."""
    return chain(layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
