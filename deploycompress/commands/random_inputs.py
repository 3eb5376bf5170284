"""Random inputs that fit what several artefacts declare, with the sizes that the command line gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
import numpy as np

from deploycompress.commands.given import DTYPES, Given, Interface
from deploycompress.commands.inputs import matched
from deploycompress.errors import ConfigError

SEED = 0
MOST_BYTES = 4 * 2**30  # of one input


@dataclass(frozen=True)
class Wanted:
    """What ``--input`` says of one input."""

    shape: tuple[int, ...]
    dtype: str | None = None
    max: int | None = None


def wanted_inputs(texts: Sequence[str]) -> dict[str, Wanted]:
    """``--input NAME=SHAPE[:DTYPE[:MAX]]``, read. Raises click.BadParameter."""
    found: dict[str, Wanted] = {}
    for text in texts:
        match = matched(text)
        name, shape = match["name"], tuple(int(size) for size in match["shape"].split("x"))
        highest = int(match["max"]) if match["max"] else None
        reason = (
            f"input {name!r} is given twice"
            if name in found
            else f"received {text!r}: a size of 0; expected positive sizes"
            if 0 in shape
            else f"received {text!r}: unknown type; known are {', '.join(DTYPES.values())}"
            if match["dtype"] and match["dtype"] not in DTYPES.values()
            else f"received {text!r}: integers are below MAX, which must be positive"
            if highest == 0
            else None
        )
        if reason:
            raise click.BadParameter(reason, param_hint="--input")
        found[name] = Wanted(shape, match["dtype"], highest)
    return found


def feed_for(
    givens: Sequence[Given], wanted: Mapping[str, Wanted], batch_size: int | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """One feed that all of ``givens`` run on, the same every time, and what is to be said of it.

    Floats are normal, integers below their MAX, or ones where none is known. The first dimension is the batch: of
    ``batch_size`` where that is given, else as ``--input`` or the file says, else 1. Raises ConfigError that names the
    sizes that are not known, or what cannot be measured on the same inputs.
    """
    specs: dict[str, Wanted] = {}
    owners: dict[str, str] = {}
    for given in givens:
        for name, spec in _resolved(given, wanted, batch_size).items():
            first = specs.setdefault(name, spec)
            if (first.shape, first.dtype) != (spec.shape, spec.dtype):
                raise ConfigError(
                    f"{owners[name]} and {given.name} do not take the same inputs: {name!r} is {_shown(first)} in the "
                    f"one and {_shown(spec)} in the other; artefacts are measured side by side on the same inputs only"
                )
            owners.setdefault(name, given.name)
    _require_common(givens, wanted)
    _require_known(wanted, specs)
    generator = np.random.default_rng(SEED)
    ordered = sorted(specs.items(), key=lambda item: not item[1].shape)  # the first one tells the batch size
    if not ordered or not ordered[0][1].shape:
        raise ConfigError(f"{givens[0].name} has no input with a dimension; there is no batch to measure")
    notes = [
        f"input {name!r} is all ones, since nothing says what its integers are below: --input {name}=SHAPE:{spec.dtype}:MAX"
        for name, spec in ordered
        if np.dtype(spec.dtype).kind in "iu" and spec.max is None
    ]
    return {name: _random(name, spec, generator) for name, spec in ordered}, notes


def _resolved(given: Given, wanted: Mapping[str, Wanted], batch_size: int | None) -> dict[str, Wanted]:
    inputs = given.inputs
    if inputs is None:
        if not wanted:
            raise ConfigError(
                f"{given.name} does not tell its inputs; give each of them: --input NAME=SHAPE[:DTYPE[:MAX]]"
            )
        inputs = {
            name: Interface(w.dtype or "float32", (None,) * len(w.shape), w.max) for name, w in wanted.items()
        }
    named = {  # a dimension's name -> its size, where one of the given shapes tells it
        dimension: size
        for name, of in inputs.items()
        if name in wanted and of.shape is not None and len(of.shape) == len(wanted[name].shape)
        for dimension, size in zip(of.shape, wanted[name].shape, strict=True)
        if isinstance(dimension, str)
    }
    return {
        name: _one(given.name, name, of, wanted.get(name), named, batch_size) for name, of in inputs.items()
    }


def _one(
    whose: str,
    name: str,
    declared: Interface,
    wanted: Wanted | None,
    named: Mapping[str, int],
    batch_size: int | None,
) -> Wanted:
    """The sizes of one input. Raises ConfigError."""
    if wanted is not None and wanted.dtype not in (None, declared.dtype):
        raise ConfigError(f"{whose}: --input {name} is {wanted.dtype}; the file declares {declared.dtype}")
    shape = declared.shape
    if shape is None or (wanted is not None and len(wanted.shape) != len(shape)):
        if wanted is None:
            raise ConfigError(
                f"{whose}: the shape of the input {name!r} is not known; give it: --input {name}=SHAPE"
            )
        if shape is not None:
            raise ConfigError(
                f"{whose}: --input {name} has {len(wanted.shape)} dimensions; the file declares {_dimensions(shape)}"
            )
        shape = (None,) * len(wanted.shape)
    sizes: list[int] = []
    for axis, dimension in enumerate(shape):
        size = None if wanted is None else wanted.shape[axis]
        if isinstance(dimension, int):
            asked = batch_size if axis == 0 and batch_size is not None else size
            if asked not in (None, dimension):
                what = "the batch" if axis == 0 else f"dimension {axis}"
                raise ConfigError(
                    f"{whose}: {what} of the input {name!r} is fixed at {dimension}; received {asked}"
                )
            sizes.append(dimension)
        elif axis == 0:
            sizes.append(batch_size or size or named.get(dimension or "", 1))
        else:
            found = size or named.get(dimension or "")
            if found is None:
                raise ConfigError(
                    f"{whose}: the input {name!r} has dynamic dimensions, {_dimensions(shape)}; say how large they are: "
                    f"--input {name}={'x'.join(str(d) if isinstance(d, int) else 'SIZE' if a else '1' for a, d in enumerate(shape))}"
                )
            sizes.append(found)
    highest = declared.max if wanted is None or wanted.max is None else wanted.max
    return Wanted(tuple(sizes), declared.dtype, highest)


def _require_common(givens: Sequence[Given], wanted: Mapping[str, Wanted]) -> None:
    """An exporter drops inputs that nothing reads, so one may take fewer; none may take others."""
    first = givens[0]
    ours = set(first.inputs if first.inputs is not None else wanted)
    for other in givens[1:]:
        theirs = set(other.inputs if other.inputs is not None else wanted)
        if not (ours <= theirs or theirs <= ours):
            raise ConfigError(
                f"{first.name} and {other.name} do not take the same inputs: {', '.join(sorted(ours)) or 'none'} and "
                f"{', '.join(sorted(theirs)) or 'none'}; artefacts are measured side by side on the same inputs only"
            )


def _require_known(wanted: Mapping[str, Wanted], specs: Mapping[str, Wanted]) -> None:
    unknown = sorted(set(wanted) - set(specs))
    if unknown:
        raise ConfigError(f"--input names {unknown[0]!r}; the inputs are {', '.join(sorted(specs))}")


def _random(name: str, spec: Wanted, generator: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if math.prod(spec.shape) * dtype.itemsize > MOST_BYTES:
        raise ConfigError(f"the input {name!r} of {_shown(spec)} has more than {MOST_BYTES} bytes")
    if dtype.kind == "f":
        return generator.standard_normal(spec.shape, dtype=np.float32).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, spec.shape).astype(dtype)
    if spec.max is None:
        return np.ones(spec.shape, dtype)
    highest = min(spec.max, int(np.iinfo(dtype).max) + 1)
    return generator.integers(
        0, highest, spec.shape, dtype=np.uint64 if highest > 2**63 else np.int64
    ).astype(dtype)


def _shown(spec: Wanted) -> str:
    return f"{spec.dtype} {'x'.join(map(str, spec.shape)) or 'scalar'}"


def _dimensions(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
