"""Quantities with their unit, as they stand in YAML: ``50%``, ``2 ms``, ``1 pp``, ``300 KB``, ``10 min``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

# factor to the base unit: a share, milliseconds, millijoules, bytes, a count, a share (for percentage points)
UNITS: dict[str, dict[str, float]] = {
    "percent": {"%": 0.01},
    "points": {"pp": 0.01},
    "time": {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6},
    "energy": {"uJ": 1e-3, "µJ": 1e-3, "mJ": 1.0, "J": 1e3},
    "bytes": {
        "B": 1.0,
        "KB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 2.0**10,
        "MiB": 2.0**20,
        "GiB": 2.0**30,
    },
    "count": {"K": 1e3, "M": 1e6, "G": 1e9},
    "steps": {"step": 1.0, "steps": 1.0},
    "epochs": {"epoch": 1.0, "epochs": 1.0},
    "trials": {"trial": 1.0, "trials": 1.0},
}
EXAMPLES = {
    "percent": "50%",
    "points": "1 pp",
    "time": "2 ms",
    "energy": "5 mJ",
    "bytes": "300 KB",
    "count": "1.5 M",
    "steps": "10 steps",
    "epochs": "1 epoch",
    "trials": "30 trials",
    "number": "0.3",
}

_FORM = re.compile(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([%A-Za-zµ]*)\s*")


@dataclass(frozen=True)
class Quantity:
    """A number with its dimension: ``value`` is in the base unit (share, milliseconds, millijoules, bytes, count)."""

    value: float
    dimension: str  # a key of UNITS, or "number" for a plain one
    text: str = field(compare=False)  # as it was written: "0.5 s" equals "500 ms"

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, raw: object, *dimensions: str) -> Quantity:
        """Read ``raw``, which must have one of ``dimensions``. Raises ValueError naming what was expected."""
        expected = " or ".join(EXAMPLES[d] for d in dimensions)
        if isinstance(raw, Quantity):
            raw = raw.text
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise ValueError(f"expected a quantity such as {expected}")
        match = _FORM.fullmatch(str(raw))
        if match is None:
            raise ValueError(f"expected a quantity such as {expected}")
        number, unit = float(match[1]), match[2]
        if not math.isfinite(number):
            raise ValueError(f"expected a finite quantity such as {expected}")
        if not unit and "number" in dimensions:
            return cls(number, "number", str(raw))
        for dimension in dimensions:
            factor = UNITS.get(dimension, {}).get(unit)
            if factor is not None:
                return cls(number * factor, dimension, str(raw).strip())
        units = {u.lower(): u for d in dimensions for u in UNITS.get(d, {})}
        close = f", did you mean {units[unit.lower()]!r}?" if unit.lower() in units else ""
        problem = f"unknown unit {unit!r}{close}" if unit else "the unit is missing"
        raise ValueError(f"{problem}{' Expected' if close else '; expected'} a quantity such as {expected}")


class _Of:
    """The pydantic side of a quantity with given dimensions and bounds."""

    def __init__(
        self,
        *dimensions: str,
        above: float | None = None,
        at_most: float | None = None,
        whole: bool = False,
    ) -> None:
        self.dimensions, self.above, self.at_most, self.whole = dimensions, above, at_most, whole

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(raw: object) -> Quantity:
            quantity = Quantity.parse(raw, *self.dimensions)
            if self.above is not None and quantity.value <= self.above:
                raise ValueError(f"must be more than {self.above:g}")
            if self.whole and not quantity.value.is_integer():
                raise ValueError("must be a whole number")
            share = quantity.dimension == "percent"
            if quantity.dimension == "number":
                share = "count" not in self.dimensions
                if not share and quantity.value < 1:
                    percent = f"{100 * quantity.value:g}%"
                    raise ValueError(f"a plain number is a count here; for a share write {percent}")
            if self.at_most is not None and share and quantity.value > self.at_most:
                limit = "100%" if quantity.dimension == "percent" else f"{self.at_most:g}"
                raise ValueError(f"must be at most {limit}")
            return quantity

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(_plain)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        units = [re.escape(u) for d in self.dimensions for u in UNITS.get(d, {})]
        optional = "?" if "number" in self.dimensions else ""
        text: dict[str, Any] = {
            "type": "string",
            "pattern": rf"^\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*({'|'.join(units)}){optional}\s*$",
            "examples": [EXAMPLES[d] for d in self.dimensions],
        }
        return {"anyOf": [text, {"type": "number"}]} if "number" in self.dimensions else text


def _plain(quantity: Quantity) -> str | float:
    return quantity.value if quantity.dimension == "number" else quantity.text


Remaining = Annotated[Quantity, _Of("percent", "time", above=0, at_most=1)]  # of latency
RemainingCount = Annotated[
    Quantity, _Of("percent", "count", "number", above=0, at_most=1)
]  # of MACs, parameters
RemainingBytes = Annotated[Quantity, _Of("percent", "bytes", above=0, at_most=1)]
Ratio = Annotated[Quantity, _Of("percent", "number", above=0, at_most=1)]
Points = Annotated[Quantity, _Of("points", "number")]  # a difference of accuracy
Level = Annotated[Quantity, _Of("percent", "number")]  # a level of accuracy
Duration = Annotated[Quantity, _Of("time", above=0)]
Size = Annotated[Quantity, _Of("bytes", above=0)]
Energy = Annotated[Quantity, _Of("energy", above=0)]
RemainingEnergy = Annotated[Quantity, _Of("percent", "energy", above=0, at_most=1)]
Steps = Annotated[Quantity, _Of("steps", above=0, whole=True)]  # of an optimiser
Epochs = Annotated[Quantity, _Of("epochs", above=0, whole=True)]
Budget = Annotated[Quantity, _Of("trials", "time", above=0, whole=True)]  # of a sweep
Interval = Annotated[Quantity, _Of("time", "steps", above=0)]  # between two things of the same kind
