"""How names and values are spoken of in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MANY = 16  # more names than this are not listed
LONGEST = 100  # characters of a name that one looks for another of


def shown(value: Any) -> str:
    """A received value, short enough for one line."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, dict):
        return f"a mapping ({listed(value) if value else 'empty'})"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return str(value)


def listed(names: Iterable[str], last: str = "") -> str:
    """``a, b, c``; with ``last='or'``: ``a, b or c``. Long lists are cut."""
    every = [str(n) for n in names]
    if len(every) > MANY:
        every = [*every[:MANY], "..."]
    if last and len(every) > 1:
        return f"{', '.join(every[:-1])} {last} {every[-1]}"
    return ", ".join(every)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be; of equally near ones the first."""
    if len(name) > LONGEST:  # what takes its time to compare, and is no slip of the pen
        return None
    wanted = _plain(name)
    best, nearness = None, 0.6  # below that the words have little in common
    for candidate in known:
        plain = _plain(candidate)
        ratio = difflib.SequenceMatcher(None, wanted, plain).ratio()
        if min(len(wanted), len(plain)) > 2 and (wanted in plain or plain in wanted):
            ratio = max(ratio, 0.61)  # 'drop' for 'max_drop'
        if ratio > nearness:
            best, nearness = candidate, ratio
    return best


def unknown(kind: str, name: str, known: Iterable[str], also: str = "") -> str:
    """``unknown key 'epoch'; did you mean 'epochs'? Known: epochs, lr``."""
    known = list(known)
    if not known:
        return f"unknown {kind} {name!r}; it takes none"
    close = nearest(name, known)
    question = f"did you mean {close!r}? Known" if close else "known"
    return f"unknown {kind} {name!r}; {question}: {listed([*known, *([also] if also else [])])}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
