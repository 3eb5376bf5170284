"""Patterns of layers that stay, checked against the layers that there are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from deploycompress.config.wording import nearest
from deploycompress.errors import ConfigError

SHOWN = 8


def require_layers(patterns: Sequence[str], module: nn.Module, option: str) -> None:
    """Every pattern names a layer of ``module``, or a parameter that lies in none. Raises ConfigError."""
    names = [name for name, _ in module.named_modules() if name]
    names += [name for name, _ in module.named_parameters() if name not in names]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern, names)
            hint = f"did you mean {near!r}? " if near else ""
            more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ConfigError(
                f"{option}: received {pattern!r}, which no layer is called; {hint}the network has "
                f"{', '.join(names[:SHOWN])}{more}"
            )
