"""Which channels of a group can stand for each other, and which layers are one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.pruning.groups import Member
from deploycompress.pruning.layers import Layer


class Uneven(Exception):
    """Why a width alone would not say how many positions of every axis stay."""


def shared_layers(module: nn.Module) -> dict[str, str]:
    """Layer -> another layer that uses one of its parameters too."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            other = first.setdefault(id(parameter), name)
            if other != name:
                found |= {name: other, other: name}
    return found


def segments(members: list[Member], width: int, layers: Any) -> Tensor:
    """[width] which segment each channel is in. Raises Uneven when the segments are not equally large.

    Two channels are in one segment when every member has them in the same runs, and equally often: then a
    width alone says how many positions of every axis stay.
    """
    labels: list[tuple[Any, ...]] = [() for _ in range(width)]
    for member in members:
        size = _run_size(member, layers)
        runs: list[list[int]] = [[] for _ in range(width)]
        for channel, position in zip(member.channels.tolist(), member.positions.tolist(), strict=True):
            runs[channel].append(position // size)
        labels = [(*label, *sorted(run), None) for label, run in zip(labels, runs, strict=True)]
    distinct = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    found = torch.tensor([distinct[label] for label in labels])
    sizes = found.bincount().tolist()
    if len(set(sizes)) > 1:
        raise Uneven(f"its channels go separate ways in unequal parts ({_some(sizes)})")
    if sizes[0] == 1:
        raise Uneven(f"each of its {width} channels goes a way of its own")
    return found


def _run_size(member: Member, layers: Any) -> int:
    """Positions of one run of a grouped layer; more than there are where all of them are one run."""
    if member.dim is not None:
        return 2**62
    layer = layers(member.layer)
    assert isinstance(layer, Layer)
    return layer.widths[member.axis] // layer.runs if layer.runs > 1 else 2**62


def _some(sizes: list[int]) -> str:
    return " + ".join(map(str, sizes[:6])) + (" ..." if len(sizes) > 6 else "")
