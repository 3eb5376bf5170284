"""Names of user code in a configuration, where user code is refused: each a mistake at its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from deploycompress.config.document import Document, KeyPath
from deploycompress.config.names import TABLES
from deploycompress.errors import ConfigError
from deploycompress.registry import is_own
from deploycompress.user_code import REFUSED, user_code_is_refused

KEYS = frozenset(
    {"stage", "build", "source", *TABLES}
)  # what stands under one of these, however deep, may be a name
TASK = "task"  # its arguments may name other tasks
REFERENCE = re.compile(r".+:\w+", re.DOTALL)  # as ``registry.load_reference`` takes it
NUMBERED = re.compile(r"\w+:\d+")  # cuda:0
RENDEZVOUS = "rendezvous"
TRUSTED = (
    "the machines that train together can have each other run code (torch.distributed sends pickles), which "
    "--no-user-code refuses; train on one machine, or without the option"
)


def check(document: Document) -> None:
    """Raises ConfigError with every name of user code in it, before any of it is looked for; if that is refused."""
    if not user_code_is_refused():
        return
    for path, text, is_key in _texts(document.data, ()):
        if path[-1:] == (RENDEZVOUS,) and not is_key:
            document.report(path, f"{text}: {TRUSTED}")
        names_code = TASK in path[:1] or any(part in KEYS for part in path)
        if names_code and REFERENCE.fullmatch(text) and not NUMBERED.fullmatch(text) and not is_own(text):
            of_step = path[:1] == ("stages",) and path[2:] == ("stage",)  # its name is a key in the file
            document.report(path[:2] if of_step else path, REFUSED.format(text), key=is_key or of_step)
    if document.problems:
        raise ConfigError(document.problems)


def _texts(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str, bool]]:
    """Every text, and whether it is a key: ``{module:Name: {weight: 1}}`` names code as well."""
    if isinstance(node, str):
        yield path, node, False
    elif isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key), key, True
            yield from _texts(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, (*path, index))
