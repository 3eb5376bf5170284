"""What code of the user's takes before and after an inference: pre- and post-processing, timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploycompress.contracts import Model
from deploycompress.errors import ConfigError
from deploycompress.measure.intervals import latency
from deploycompress.measure.measurement import Latency

WARMUP_CALLS = 3
LONGEST_S = 1.0
MOST_CALLS = 1000

Feed = Mapping[str, np.ndarray]


def preprocessed(function: Callable[[str], Any], sample: Path, model: Model) -> dict[str, np.ndarray]:
    """What ``function`` makes of the file ``sample``: the model's inputs by name, with their batch dimension.

    It may give an array alone where the model has one input. Raises ConfigError where that does not fit the model.
    """
    given = _called("preprocess", function, str(sample))
    wanted = model.inputs
    if not isinstance(given, Mapping):
        given = {next(iter(wanted)): given} if len(wanted) == 1 else {}
    found = {str(name): np.asarray(value) for name, value in given.items()}
    if set(found) != set(wanted):
        raise ConfigError(
            f"preprocess gives {sorted(found) or 'no inputs by name'}, expected {sorted(wanted)}"
        )
    for name, spec in wanted.items():
        shape, expected = found[name].shape, tuple(spec.shape)
        fits = len(shape) == len(expected) and all(
            isinstance(size, str) or size == got for size, got in zip(expected, shape, strict=True)
        )
        if not fits:
            raise ConfigError(f"preprocess gives {name} of shape {list(shape)}, expected {list(expected)}")
    return found


def time_around(
    preprocess: Callable[[str], Any] | None,
    sample: Path | None,
    postprocess: Callable[[dict[str, np.ndarray]], Any] | None,
    outputs: Feed,
    threads: int,
) -> dict[str, Latency]:
    """Latency of a call of each function that is given; ``outputs``: of the model, for ``postprocess``.

    Torch gets as many ``threads`` as the artefacts have meanwhile. Raises ConfigError where one of them fails.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = {}
        if preprocess is not None:
            found["preprocess"] = _timed("preprocess", preprocess, str(sample))
        if postprocess is not None:
            found["postprocess"] = _timed("postprocess", postprocess, dict(outputs))
        return found
    finally:
        torch.set_num_threads(before)


def _timed(name: str, function: Callable[[Any], Any], argument: Any) -> Latency:
    for _ in range(WARMUP_CALLS):
        _called(name, function, argument)
    samples: list[int] = []
    end = time.perf_counter() + LONGEST_S
    while len(samples) < MOST_CALLS and (not samples or time.perf_counter() < end):
        began = time.perf_counter_ns()
        function(argument)
        samples.append(time.perf_counter_ns() - began)
    return latency([samples])


def _called(name: str, function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:
        raise ConfigError(f"{name} failed: {type(error).__name__}: {error}") from error
