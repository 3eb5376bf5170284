"""The four splits, made of what a source gives: validation and calibration are cut where it has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploycompress.config.schema import DataConfig
from deploycompress.contracts import Batch
from deploycompress.data.batches import Specs, collated
from deploycompress.data.samples import MapStyle, Samples, Subset, stratified
from deploycompress.errors import ConfigError

SPLITS = ("train", "val", "test", "calibration")
CUT_SEED = 0  # the same samples for every seed of the pipeline: runs stay comparable
FORM = (
    "a dict from 'train', 'val', 'test', 'calibration' (those it has) to a map-style data set of samples "
    "(__len__ and __getitem__) or an iterable of batches (a DataLoader)"
)


@dataclass(frozen=True)
class Stream:
    """A split that can only be read in its own order; ``limit`` samples of it, when given."""

    batches: Iterable[Any]
    limit: int | None = None


Splits = Mapping[str, Samples | Stream]


def open_splits(given: object, config: DataConfig, specs: Specs) -> Splits:
    """What a source returned, checked and completed. Raises ConfigError."""
    where = f"data source {config.source}"
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where}: received {type(given).__name__}; expected {FORM}")
    if unknown := [key for key in given if key not in SPLITS]:
        raise ConfigError(f"{where}: received the splits {', '.join(map(repr, unknown))}; expected {FORM}")
    splits = {key: _opened(value, specs, f"{where}, split {key}") for key, value in given.items()}
    if "val" not in splits and "train" in splits:
        splits["val"], splits["train"] = _cut(splits["train"], config)
    if "calibration" not in splits and "train" in splits:
        splits["calibration"] = _sampled(splits["train"], config.calibration)
    return splits


def _opened(value: Any, specs: Specs, where: str) -> Samples | Stream:
    countable = hasattr(value, "__len__")
    if countable and len(value) == 0:
        raise ConfigError(f"{where} is empty: expected at least one sample; check data.root and data.args")
    if countable and hasattr(value, "batch"):
        return value  # type: ignore[no-any-return]
    if countable and hasattr(value, "__getitem__"):

        def stack(samples: Any) -> Batch:
            return collated(samples, specs, where)

        return MapStyle(value, stack)
    if not hasattr(value, "__iter__") or hasattr(value, "__next__"):
        what = "cannot be read twice" if hasattr(value, "__next__") else "is neither"
        raise ConfigError(f"{where}: received {type(value).__name__}, which {what}; expected {FORM}")
    return Stream(value)


def _cut(train: Samples | Stream, config: DataConfig) -> tuple[Samples, Samples]:
    """(validation, what is left of train), each class in its share."""
    where = f"data source {config.source}"
    if isinstance(train, Stream):
        raise ConfigError(
            f"{where}: no 'val' split, and none can be cut from a train split that is an iterable of batches: "
            "return 'val' as well, or 'train' as a map-style data set"
        )
    total = len(train)
    if total < 2:
        raise ConfigError(
            f"{where}: received {total} training sample; expected at least 2, to cut a validation split"
        )
    count = min(max(1, round(config.validation * total)), total - 1)
    chosen, left = stratified(_labels(train), total, count, CUT_SEED)
    return Subset(train, chosen), Subset(train, left)


def _sampled(train: Samples | Stream, count: int) -> Samples | Stream:
    if isinstance(train, Stream):
        return Stream(train.batches, count)
    chosen, _ = stratified(_labels(train), len(train), min(count, len(train)), CUT_SEED + 1)
    return Subset(train, chosen)


def _labels(samples: Samples) -> np.ndarray | None:
    return getattr(samples, "labels", None)
