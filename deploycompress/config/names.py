"""Names in a configuration that stand for an entry of a registry table, or for the user's own code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploycompress import registry
from deploycompress.config import references
from deploycompress.config.document import Document, KeyPath
from deploycompress.config.wording import shown, unknown
from deploycompress.errors import ConfigError

# A key with one of these names holds a name of that table, or a list of them, wherever it stands.
TABLES: dict[str, registry.Table] = {
    "criterion": registry.CRITERIA,
    "allocation": registry.ALLOCATIONS,
    "loss": registry.LOSSES,
    "runtime": registry.RUNTIMES,
    "runtimes": registry.RUNTIMES,
    "device": registry.DEVICES,
    "devices": registry.DEVICES,
    "preprocess": registry.FUNCTIONS,
    "postprocess": registry.FUNCTIONS,
}

ALSO = {"device": "a name in devices.yaml, or module:Name"}
WITH_ARGUMENTS = frozenset({"loss"})  # a name under one of these may be {name: {argument: value}} instead


def check_name(
    table: registry.Table, document: Document, path: KeyPath, folders: Sequence[Path], *, key: bool = False
) -> str | None:
    """The name at ``path``, a user's file in it made absolute; None after its mistake was noted.

    ``key``: the name is the last part of the path itself.
    """
    name = path[-1] if key else document.value(path)
    problem = wrong_name(table, name, folders)
    if problem is not None:
        document.report(path, problem, key=key)
        return None
    return references.absolute(str(name), folders)


def wrong_name(table: registry.Table, name: Any, folders: Sequence[Path]) -> str | None:
    """Why ``name`` is nothing that ``table`` can give, or None; imports nothing."""
    if not isinstance(name, str):
        return f"received {shown(name)}, expected the name of a {table.kind}"
    if name in table:
        return None
    if ":" not in name and not table:
        return f"received {shown(name)}, expected {references.FORMS}"
    if ":" not in name:
        return unknown(table.kind, name, table, also=ALSO.get(table.kind, "or module:Name"))
    reason = references.locate(name, folders, libraries=False)
    return None if reason is None else f"{table.kind} {name!r}: {reason}"


def check_keys(document: Document, path: KeyPath, folders: Sequence[Path], devices: registry.Table) -> None:
    """Check the named keys of the mapping at ``path``; a user's file is made absolute in place.

    ``devices``: those that are declared.
    """
    block = document.value(path)
    for key in TABLES.keys() & block.keys() if isinstance(block, dict) else ():
        table = devices if TABLES[key] is registry.DEVICES else TABLES[key]
        listed = isinstance(block[key], list)
        for inner in [(*path, key, i) for i in range(len(block[key]))] if listed else [(*path, key)]:
            given = document.value(inner)
            if isinstance(given, str):
                name = check_name(table, document, inner, folders)
                if name is not None:
                    document.value(inner[:-1])[inner[-1]] = name
            elif key in WITH_ARGUMENTS and isinstance(given, dict) and len(given) == 1:
                (written,) = given
                name = check_name(table, document, (*inner, written), folders, key=True)
                if name is not None:
                    given[name] = given.pop(written)
            # Of anything else its model says what is due.


def load(table: registry.Table, name: str, folders: Sequence[Path]) -> Any:
    """The object behind a name that was checked; a user's module is imported from ``folders`` first.

    Raises ConfigError.
    """
    if name in table:
        return table.load(name)
    try:
        return references.load(name, folders)
    except ConfigError as error:
        raise ConfigError(f"{table.kind} {error}") from error
