"""Relative paths of a configuration: against the YAML's folder, else against the current one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from deploycompress.config.document import KeyPath
from deploycompress.config.wording import nearest, shown

T = TypeVar("T")
K = TypeVar("K")


def search_path(path: Path) -> tuple[Path, ...]:
    """Where relative paths and user code of the configuration at ``path`` are looked for."""
    return tuple(dict.fromkeys((path.resolve().parent, Path.cwd())))


def found(path: Path, folders: Sequence[Path]) -> Path | None:
    """``path``, absolute, in the first folder that has it; None where none has."""
    candidates = [folder / os.path.expanduser(path) for folder in folders]
    # os.path answers False where pathlib raises: names that are too long, or hold a NUL.
    return next((c.resolve() for c in candidates if os.path.exists(c)), None)


def not_found(path: Path, folders: Sequence[Path]) -> str:
    """A sentence about a file or folder that is in none of ``folders``."""
    parents = [(folder / os.path.expanduser(path)).parent for folder in folders]
    close = nearest(
        path.name, [name for parent in parents if os.path.isdir(parent) for name in os.listdir(parent)]
    )
    question = f"; did you mean {path.with_name(close)}?" if close else ""
    looked = f"{' Looked' if close else '; looked'} in {' and '.join(map(str, folders))}"
    return f"{shown(str(path))} does not exist{question}{'' if path.is_absolute() else looked}"


def with_paths(value: T, change: Callable[[KeyPath, Path], Path]) -> T:
    """``value`` with every path in it, however deep, replaced by what ``change`` gives for it and its key."""
    return with_each(value, Path, change)


def every(value: object, kind: type[K]) -> list[K]:
    """All of that kind in a configuration, however deep."""
    found: list[K] = []

    def note(key: KeyPath, one: K) -> K:
        found.append(one)
        return one

    with_each(value, kind, note)
    return found


def with_each(value: T, kind: type[K], change: Callable[[KeyPath, K], K], key: KeyPath = ()) -> T:
    """As ``with_paths``, for any kind of value."""
    changed: Any = value
    if isinstance(value, kind):
        changed = change(key, value)
    elif isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        parts = {n: with_each(getattr(value, n), kind, change, (*key, f.alias or n)) for n, f in fields}
        changed = value.model_copy(
            update={n: new for n, new in parts.items() if new is not getattr(value, n)}
        )
    elif isinstance(value, (list, tuple)):
        changed = type(value)(with_each(item, kind, change, (*key, i)) for i, item in enumerate(value))
    elif isinstance(value, dict):
        changed = {k: with_each(item, kind, change, (*key, k)) for k, item in value.items()}
    return changed  # type: ignore[no-any-return]
