"""A module that gives back what it gets, in the place of a block that was taken out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn


class PassThrough(nn.Module):
    """Gives back the first tensor it is called with, by position or else by keyword; has no parameters.

    ``nn.Identity`` takes one argument; transformer layers are called with masks and keywords too.
    """

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return first_tensor(given, named)


def first_tensor(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The first tensor of a call. Raises TypeError where there is none."""
    for value in (*given, *named.values()):
        if isinstance(value, Tensor):
            return value
    raise TypeError("a block that was taken out was called without a tensor")


def take_out(module: nn.Module, paths: Iterable[str]) -> None:
    """Put a ``PassThrough`` in the place of each of these submodules, in place."""
    for path in paths:
        owner, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(owner), leaf, PassThrough())


def taken_out(module: nn.Module) -> tuple[str, ...]:
    """Paths of what was taken out."""
    return tuple(path for path, part in module.named_modules() if isinstance(part, PassThrough))
