"""Damaged inputs: changes in the bytes and in the structure of good ones, each input known by its number."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import struct
import warnings
from typing import Any

# What parsers trip over: the ends of number ranges, empty and long texts, paths that lead away, signs with a meaning.
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 3.5, 1e308, 1e-320, "", " ",
    "x", "null", "1", "1e999", "50%", "5 ms", "é" * 300, "\u0000", "\ud7ff\u202e", "../../etc/passwd", "/etc/passwd", "..", ".",
    "/", "~", "a:b", "os:system", "a.py:b", "last", "all", "model", "prune@2", "x" * 70_000, [], {}, [[]], [{}], {"": None},
    {"a": {"b": {"c": []}}}, [None] * 300, {"repeat": 10**9, "stages": ["train"]}, "metric:", "torchvision:x", "timm:", "sha256",
)  # fmt: skip
BYTES = (
    b"\x00",
    b"\xff",
    b"\x80",
    b"\n",
    b"\r",
    b"\x1b[2J",
    b"\xc3\x28",
    b"{",
    b"}",
    b"[" * 2000,
    b'"',
    b"&a *a",
    b"!!python/",
)
EXAMPLES = 400  # that hypothesis makes


def chance(subject: str, number: int) -> random.Random:
    """The same numbers for the same input, on every machine."""
    return random.Random(f"{subject}/{number}")


def changed_bytes(data: bytes, chance: random.Random) -> bytes:
    """``data`` with some bytes flipped, replaced, inserted, repeated or removed."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(made) + 1)
        length = chance.choice((1, 1, 2, 4, 8, 64))
        match chance.randrange(8):
            case 0 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                made[at : at + length] = chance.randbytes(length)
            case 2:
                del made[at : at + length]
            case 3:
                made[at:at] = made[at : at + length]
            case 4:
                made[at:at] = chance.choice(BYTES)
            case 5:
                made[at : at + 8] = struct.pack("<q", chance.choice((0, -1, 2**31, 2**63 - 1, -(2**63))))
            case 6:
                del made[at:]
            case _:
                other = chance.randrange(len(made) + 1)
                made[at : at + length] = made[other : other + length]
    return bytes(made)


def changed_data(data: Any, chance: random.Random, mould: str) -> Any:
    """A copy of a JSON document with values and keys replaced, removed, repeated or exchanged."""
    made = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        places = list(_places(made))
        if not places:
            return chance.choice(JUNK)
        node, key = chance.choice(places)
        match chance.randrange(7):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[str(chance.choice(JUNK))] = node.pop(key)
            case 2:
                other, name = chance.choice(places)
                node[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
            case 3 if isinstance(node[key], int | float) and not isinstance(node[key], bool):
                factor, more = chance.choice((-1, 0, 2, 1e9, 0.5)), chance.choice((0, 1, -1))
                with contextlib.suppress(OverflowError):  # of an integer that is larger than any float
                    node[key] = node[key] * factor + more
            case 4:
                node[key] = copy.deepcopy(chance.choice(from_hypothesis(mould)))
            case 5 if isinstance(node[key], str):
                node[key] = node[key] + str(chance.choice(JUNK)) if chance.random() < 0.5 else node[key][:-1]
            case _:
                node[key] = copy.deepcopy(chance.choice(JUNK))
    return made


@functools.cache
def from_hypothesis(mould: str) -> tuple[Any, ...]:
    """Values of every JSON form, deep ones and awkward texts among them, always the same for one ``mould``."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    found: list[Any] = []
    text = st.text(max_size=30)
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
    values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)

    @seed(mould)
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def collect(value: Any) -> None:
        found.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collect()
    return tuple(found)


def _places(node: Any) -> Any:
    """(container, key) of everything inside."""
    for key in _keys(node):
        yield node, key
        yield from _places(node[key])


def _keys(node: Any) -> list[Any]:
    return list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
