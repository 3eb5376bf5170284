"""What a sweep varies: a path of ``--set`` and the values to try there, and the order that shares most."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploycompress.config.document import Document, KeyPath
from deploycompress.config.overrides import parse_override
from deploycompress.config.quantities import UNITS, Quantity
from deploycompress.config.schema import PipelineConfig
from deploycompress.config.wording import listed, shown
from deploycompress.errors import ConfigError
from deploycompress.registry import STAGES

EXPECTED = (
    "expected a list of values, {choice: [...]}, or {low: ..., high: ...} with step or log where wanted"
)
MOST_VALUES = 1000  # of one range with a step

Combination = Mapping[str, str]  # path -> the value as YAML text


@dataclass(frozen=True)
class Choice:
    """Values as they would stand behind ``--set PATH=``."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both whole or neither, with a unit where the value has one."""

    path: str
    low: float
    high: float
    unit: str = ""
    whole: bool = False
    log: bool = False

    def text(self, value: float) -> str:
        number = str(int(value)) if self.whole else f"{value:.6g}"
        return f"{number}{'' if self.unit in ('', '%') else ' '}{self.unit}"

    @property
    def values(self) -> tuple[str, ...]:
        """The two ends, which are checked."""
        return (self.text(self.low), self.text(self.high))


Axis = Choice | Range


def size(axes: Sequence[Axis]) -> int | None:
    """How many combinations there are; None where a range has no end of them."""
    sizes = [len(a.values) if isinstance(a, Choice) else _whole_size(a) for a in axes]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def combinations(axes: Sequence[Choice]) -> Iterator[Combination]:
    """Every one, the last axis varying fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip((axis.path for axis in axes), values, strict=True))


def sharing_order(axes: Sequence[Choice], first_changed: Mapping[str, int]) -> list[Choice]:
    """Those that change an early step first, so that what comes before a change is varied as seldom as can be."""
    return sorted(axes, key=lambda axis: first_changed[axis.path])


def first_changed(before: PipelineConfig, after: PipelineConfig) -> int:
    """The number of the first step that another configuration makes different; beyond all where none is."""
    blocks = ("model", "data", "task", "seed")
    if any(getattr(before, block) != getattr(after, block) for block in blocks):
        return -1
    for index, (one, other) in enumerate(itertools.zip_longest(before.stages, after.stages)):
        if one != other:
            return index
        reads = STAGES.load(one.stage)(one.config).reads() if one.stage in STAGES else {"target", "gates"}
        if any(getattr(before, block) != getattr(after, block) for block in reads):
            return index
    return len(before.stages)


# ---------------------------------------------------------------- from YAML


def read_axis(document: Document, path: KeyPath, *, finite: str = "") -> Axis | None:
    """The axis at ``path``; None after its mistake was noted. ``finite``: who wants values and no range."""
    name, raw = str(path[-1]), document.value(path)
    if isinstance(raw, list):
        return _choice(document, path, name, raw)
    if not isinstance(raw, dict) or not raw:
        document.report(path, f"received {shown(raw)}, {EXPECTED}")
        return None
    known = ("choice",) if "choice" in raw else ("low", "high", "step", "log")
    for key in raw.keys() - set(known):
        document.report((*path, key), f"unknown key {key!r}, {EXPECTED}", key=True)
    if "choice" in raw:
        if isinstance(raw["choice"], list):
            return _choice(document, (*path, "choice"), name, raw["choice"])
        document.report((*path, "choice"), f"received {shown(raw['choice'])}, expected a list of values")
        return None
    missing = [key for key in ("low", "high") if raw.get(key) is None]
    if missing:
        document.report(path, f"{listed(missing, last='and')} missing, {EXPECTED}")
        return None
    return _range(document, path, name, raw, finite)


def _choice(document: Document, path: KeyPath, name: str, values: Sequence[Any]) -> Choice | None:
    if not values:
        document.report(path, "an empty list: there is nothing to try; give at least one value")
        return None
    texts = [text_of(value) for value in values]
    for index, text in enumerate(texts):
        if text in texts[:index]:
            document.report((*path, index), f"{text} is there twice; each value is tried once")
    return Choice(name, tuple(dict.fromkeys(texts)))


def _range(document: Document, path: KeyPath, name: str, raw: Mapping[str, Any], finite: str) -> Axis | None:
    ends: dict[str, Quantity] = {}
    for key in ("low", "high", "step"):
        if raw.get(key) is None:
            continue
        try:
            ends[key] = Quantity.parse(raw[key], "number", *UNITS)
        except ValueError as error:
            document.report((*path, key), f"received {shown(raw[key])}: {error}")
            return None
        if _unit(ends[key]) != _unit(ends["low"]):
            message = f"received {ends[key]}, expected the unit of low: {ends['low']}"
            document.report((*path, key), message)
            return None
    low, high = _number(ends["low"]), _number(ends["high"])
    log = raw.get("log", False)
    if not isinstance(log, bool):
        document.report((*path, "log"), f"received {shown(log)}, expected true or false")
        return None
    if low >= high:
        document.report(path, f"an empty range: low {ends['low']} is not below high {ends['high']}")
        return None
    if log and low <= 0:
        document.report((*path, "low"), f"received {ends['low']}, expected more than 0 where log is true")
        return None
    unit = _unit(ends["low"])
    whole = all("." not in q.text and "e" not in q.text.lower() for q in ends.values())
    if "step" in ends:
        return _stepped(document, path, Range(name, low, high, unit, whole), _number(ends["step"]))
    if finite:
        document.report(path, f"{finite} needs values to enumerate; give a list, or a step")
        return None
    return Range(name, low, high, unit, whole, log)


def _stepped(document: Document, path: KeyPath, between: Range, step: float) -> Choice | None:
    count = math.floor((between.high - between.low) / step + 1e-9) + 1 if step > 0 else 0
    if not 1 <= count <= MOST_VALUES:
        document.report(
            (*path, "step"), f"received {step:g}, expected a step that gives 1 to {MOST_VALUES} values"
        )
        return None
    return Choice(between.path, tuple(between.text(between.low + i * step) for i in range(count)))


def text_of(value: Any) -> str:
    """A value as it can stand behind ``--set PATH=``, so that it is read back as the same."""
    if isinstance(value, str):
        try:
            if parse_override(f"a={value}").value == value:
                return value
        except ConfigError:
            pass
    return json.dumps(value, ensure_ascii=False)


def _unit(quantity: Quantity) -> str:
    return re.search(r"[%A-Za-zµ]*$", quantity.text.strip())[0]  # type: ignore[index]


def _number(quantity: Quantity) -> float:
    """As written, in the unit that stands behind it."""
    return float(quantity.text.strip().removesuffix(_unit(quantity)))


def _whole_size(axis: Range) -> int | None:
    return int(axis.high - axis.low) + 1 if axis.whole else None
