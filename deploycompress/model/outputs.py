"""The outputs of a forward pass, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from deploycompress.errors import ConfigError


def named_outputs(raw: Any) -> dict[str, Tensor]:
    """Every tensor of what a forward pass gave back.

    A tensor is called ``output``; items of a tuple are ``output_0``, ``output_1`` ...; those of a mapping, a
    named tuple or a dataclass (transformers' ModelOutput) keep their names; nested ones are joined with ".".
    What is not a tensor (None, a cache) is left out. Raises ConfigError when no tensor is left.
    """
    if isinstance(raw, Tensor):
        return {"output": raw}
    found = dict(_walk(raw, ""))
    if not found:
        raise ConfigError(f"the model's forward gave back {type(raw).__name__} without a tensor in it")
    return found


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, _joined(name, str(key)))
    elif hasattr(value, "_fields"):  # a named tuple
        for key, item in zip(value._fields, value, strict=True):
            yield from _walk(item, _joined(name, key))
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from _walk(item, _joined(name, str(i)) if name else f"output_{i}")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _walk(getattr(value, field.name), _joined(name, field.name))


def _joined(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part
