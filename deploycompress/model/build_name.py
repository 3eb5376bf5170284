"""Which build a module is of, where a run has more than one: a name on the module and in its checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from deploycompress.artifact import digest_json
from deploycompress.config.schema import Network

_MARK = "_build_name"  # on the root: it goes with a copy, and whoever loads and saves need not know of it
DIGITS = 12


def build_name(network: Network) -> str:
    """``resnet:build-0a1b2c3d4e5f``: the same for the same function and arguments, wherever the file lies."""
    place, _, function = network.build.rpartition(":")
    short = f"{Path(place).name if place.endswith('.py') else place}:{function}"
    return f"{short}-{digest_json({'build': short, 'args': network.args})[:DIGITS]}"


def mark_build(module: nn.Module, name: str) -> None:
    setattr(module, _MARK, name)


def build_of(module: nn.Module) -> str:
    """The name on ``module``; "" for the pipeline's own model."""
    return str(getattr(module, _MARK, ""))
