"""The given weights on the validation split, before anything is made of them: is this the model that was meant?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploycompress import __version__
from deploycompress.artifact import digest_file, read_json, write_json
from deploycompress.config.quantities import Quantity
from deploycompress.contracts import MetricInfo, Note, RunContext, Task, figures_of
from deploycompress.errors import ConfigError
from deploycompress.recovery.evaluation import evaluate

if TYPE_CHECKING:
    from torch import nn

Z95 = 1.96
USUAL_SHARE, USUAL_PART = (
    0.01,
    0.05,
)  # tolerances: of a share, and as a part of what is expected of other figures


@dataclass(frozen=True)
class Reached:
    """Figures on the validation split; ``error`` is the primary metric's standard error, where it has scores."""

    metrics: Mapping[str, float]
    error: float | None


def validated(module: nn.Module, weights: Path | None, context: RunContext, *, anew: bool) -> Reached:
    """What the weights reach, or a fresh build (None). Kept in the store for the next run, unless ``anew``.

    Data that a user's function reads may be others without its code being another: who expects something of them
    wants to know it of those that are there now.
    """
    task = context.task
    if anew or context.rehearsal or not is_dataclass(task):  # what else a user's task depends on is not known
        return _evaluated(module, context)
    import torch

    key = {
        "model": context.model.digest,
        "data": context.data.digest,
        "weights": None if weights is None else digest_file(weights),
        "seed": context.seed,
        "task": [type(task).__qualname__, repr(task)],
        "versions": [__version__, torch.__version__],
    }

    def make(folder: Path) -> None:
        write_json(folder / "reached.json", asdict(_evaluated(module, context)))

    return Reached(**read_json(context.store.folder("given", key, make) / "reached.json"))


def held_against(
    found: Reached, expected: Mapping[str, Quantity], tolerance: Quantity | None, task: Task
) -> Iterator[Note]:
    """Raises ConfigError where a figure is worse than expected; notes one that is better than it can well be.

    Worse by more than the tolerance and by more than sampling explains (1.96 standard errors, where they are known).
    """
    known = figures_of(task)
    for name, level in expected.items():
        info = known.get(name)
        if info is None or name not in found.metrics:
            raise ConfigError(
                f"model.expect: the given weights have no {name} on the validation split; received "
                f"{', '.join(found.metrics)}: name one of these"
            )
        value = found.metrics[name]
        usual = USUAL_SHARE if info.unit == "share" else USUAL_PART * abs(level.value)
        allowed = usual if tolerance is None else tolerance.value
        sampling = Z95 * found.error if found.error is not None and name == task.primary.name else 0.0
        worse = level.value - value if info.higher_is_better else value - level.value
        within = f"{_told(allowed, info, ' pp')}" + (
            f" and {_told(sampling, info, ' pp')} of sampling error" if sampling else ""
        )
        if worse > allowed + sampling:
            raise ConfigError(
                f"model.expect: the given weights reach {name} {_told(value, info, ' %')} on the validation split; "
                f"expected {_told(level.value, info, ' %')} within {within}: the data, their transform or the order of "
                "the classes are not what the weights were trained with; look at data, model.args and model.weights, "
                "or correct model.expect"
            )
        if -worse > allowed + sampling:
            yield Note(
                "warning",
                f"the given weights reach {name} {_told(value, info, ' %')}, better than the expected "
                f"{_told(level.value, info, ' %')} by more than {within}: the validation split may hold samples that "
                "they were trained on",
            )


def _evaluated(module: nn.Module, context: RunContext) -> Reached:
    from deploycompress.recovery.training import device

    module.to(device())
    metrics, scores = evaluate(module, context.model, context.data.loader("val"), context.task)
    module.to("cpu")
    error = (
        None if scores is None or len(scores) < 2 else float(np.std(scores, ddof=1) / math.sqrt(len(scores)))
    )
    return Reached(metrics, error)


def _told(value: float, info: MetricInfo, unit: str) -> str:
    return f"{100 * value:.2f}{unit}" if info.unit == "share" else f"{value:.4g}"
