"""Which channels of a group can stand for each other."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor

from deploycompress.pruning.groups import Member
from deploycompress.pruning.layers import Layer


class Uneven(Exception):
    """Why a share alone would not say how many positions of every axis stay."""


def segments(members: list[Member], width: int, layers: Any) -> Tensor:
    """[width] which segment each channel is in. Raises Uneven when no share of them all is whole channels of each.

    Two channels are in one segment when every member has them in the same runs, and equally often: then the
    share that stays says how many positions of every axis do.
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
    if len(sizes) > 1 and gcd(*sizes) == 1:
        if max(sizes) == 1:
            raise Uneven(f"each of its {width} channels goes a way of its own")
        raise Uneven(f"its channels go separate ways in unequal parts ({_some(sizes)})")
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
