"""How names and values are spoken of in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MANY = 16  # more names than this are not listed


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
    """The known name that ``name`` was probably meant to be."""
    by_case = {k.lower().replace("-", "_"): k for k in known}
    wanted = name.lower().replace("-", "_")
    close = difflib.get_close_matches(wanted, by_case, n=1, cutoff=0.6)
    if not close:  # 'accuracy_max_drop' for 'max_drop'
        close = [k for k in by_case if len(k) > 2 and (k in wanted or wanted in k) and len(wanted) > 2][:1]
    return by_case[close[0]] if close else None


def unknown(kind: str, name: str, known: Iterable[str], also: str = "") -> str:
    """``unknown key 'epoch'; did you mean 'epochs'? Known: ...``."""
    known = list(known)
    close = nearest(name, known)
    question = f"; did you mean {close!r}?" if close else ";"
    listing = listed([*known, *([also] if also else [])])
    return f"unknown {kind} {name!r}{question} " + (f"known: {listing}" if known else "it takes none")
