"""The four splits, made of what a source gives: validation and calibration are cut where it has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploycompress.config.schema import DataConfig
from deploycompress.contracts import Batch
from deploycompress.data.batches import Specs, collated
from deploycompress.data.samples import MapStyle, Samples, Subset, length_of, stratified
from deploycompress.errors import ConfigError

SPLITS = ("train", "val", "test", "calibration")
# The same samples for every seed of the pipeline: runs stay comparable.
CUT_SEEDS = {"val": 0, "calibration": 1, "test": 2}
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


def open_splits(given: object, config: DataConfig, specs: Specs, classes: bool = True) -> Splits:
    """What a source returned, checked and completed. Raises ConfigError.

    ``classes``: whether whole numbers among the targets are classes, to be in every split, each in its share.
    """
    where = f"data source {config.source}"
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where}: received {type(given).__name__}; expected {FORM}")
    if unknown := [key for key in given if key not in SPLITS]:
        raise ConfigError(f"{where}: received the splits {', '.join(map(repr, unknown))}; expected {FORM}")
    splits = {key: _opened(value, specs, f"{where}, split {key}") for key, value in given.items()}
    if classes and not config.allow_missing_classes:
        _check_classes(splits, where)
    if "test" not in splits and "train" in splits and config.test is not None:
        splits["test"], splits["train"] = _cut(splits["train"], "test", config.test, where, classes)
    if "val" not in splits and "train" in splits:
        splits["val"], splits["train"] = _cut(splits["train"], "val", config.validation, where, classes)
    if "calibration" not in splits and "train" in splits:
        splits["calibration"] = _sampled(splits["train"], config.calibration, classes)
    return splits


def _opened(value: Any, specs: Specs, where: str) -> Samples | Stream:
    length = length_of(value)
    if length == 0:
        raise ConfigError(f"{where} is empty: expected at least one sample; check data.root and data.args")
    if length and hasattr(value, "batch"):
        return value  # type: ignore[no-any-return]
    if length and hasattr(value, "__getitem__"):

        def stack(samples: Any) -> Batch:
            return collated(samples, specs, where)

        return MapStyle(value, stack)
    if not hasattr(value, "__iter__") or hasattr(value, "__next__"):
        what = "cannot be read twice" if hasattr(value, "__next__") else "is neither"
        raise ConfigError(f"{where}: received {type(value).__name__}, which {what}; expected {FORM}")
    return Stream(value)


def _cut(
    train: Samples | Stream, split: str, share: float, where: str, classes: bool
) -> tuple[Samples, Samples]:
    """(``split``, what is left of train), each class in its share."""
    if isinstance(train, Stream):
        raise ConfigError(
            f"{where}: no {split!r} split, and none can be cut from a train split that is an iterable of batches: "
            f"return {split!r} as well, or 'train' as a map-style data set"
        )
    total = len(train)
    if total < 2:
        raise ConfigError(
            f"{where}: received {total} training sample; expected at least 2, to cut a {split!r} split"
        )
    count = min(max(1, round(share * total)), total - 1)
    chosen, left = stratified(_labels(train) if classes else None, total, count, CUT_SEEDS[split])
    return Subset(train, chosen), Subset(train, left)


def _check_classes(splits: Splits, where: str) -> None:
    """Every class of train is in the other splits that the source gave, and no other one."""
    known = _classes(splits["train"]) if "train" in splits else None
    if not known:
        return
    names = getattr(splits["train"], "classes", None)
    for split in ("val", "test"):
        found = _classes(splits[split]) if split in splits else None
        if found is None or found == known:
            continue
        missing, extra = sorted(known - found), sorted(found - known)
        problem = f"{_listed(missing, names)} missing" if missing else f"{_listed(extra, names)} not in train"
        raise ConfigError(
            f"{where}, split {split}: {len(found)} classes, where train has {len(known)}: {problem}; expected the "
            "same classes in every split: add samples of them, leave the class out, or set "
            "data.allow_missing_classes: true"
        )


def _classes(samples: Samples | Stream) -> set[int] | None:
    labels = None if isinstance(samples, Stream) else _labels(samples)
    return None if labels is None else {int(label) for label in np.unique(labels)}


def _listed(classes: list[int], names: Sequence[str] | None, most: int = 5) -> str:
    """The first classes, by name where they have one."""
    named = [repr(names[c]) if names and 0 <= c < len(names) else str(c) for c in classes[:most]]
    return ", ".join(named) + (f" and {len(classes) - most} more" if len(classes) > most else "")


def _sampled(train: Samples | Stream, count: int, classes: bool) -> Samples | Stream:
    if isinstance(train, Stream):
        return Stream(train.batches, count)
    chosen, _ = stratified(
        _labels(train) if classes else None, len(train), min(count, len(train)), CUT_SEEDS["calibration"]
    )
    return Subset(train, chosen)


def _labels(samples: Samples) -> np.ndarray | None:
    """The class of every sample; None where there are no classes, but numbers or nothing."""
    labels = getattr(samples, "labels", None)  # a user's own class need not have them
    array = None if labels is None else np.asarray(labels)
    return array if array is not None and array.ndim == 1 and np.issubdtype(array.dtype, np.integer) else None
