"""How often each class was predicted, was true and was both, and the figures that follow from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

ByClass = dict[str, float]  # a class's number -> its figure


class ClassCounts:
    """Three counts a class, over all batches added.

    A figure of a class is left out where nothing defines it: the recall of a class without samples, the others of
    one that is neither there nor predicted. They are torchmetrics' figures, counted here because they are a few
    lines, and importing torchmetrics takes seconds in each step's process.
    """

    def __init__(self) -> None:
        self._both: np.ndarray | int = 0  # [classes], once something was added
        self._predicted: np.ndarray | int = 0
        self._true: np.ndarray | int = 0

    def add(self, predicted: Tensor, true: Tensor, classes: int) -> None:
        """Class indices below ``classes``, two integer tensors of one shape."""
        p, t = (values.reshape(-1).cpu().numpy() for values in (predicted, true))
        self.add_counts(*(np.bincount(values, minlength=classes) for values in (t[p == t], p, t)))

    def add_counts(self, both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> None:
        """Counts of one batch, [classes] each."""
        self._both = self._both + both
        self._predicted = self._predicted + predicted
        self._true = self._true + true

    def accuracy(self) -> float | None:
        """The share that is right; None where nothing was counted."""
        total = int(np.sum(self._true))
        return float(np.sum(self._both) / total) if total else None

    def recall(self) -> ByClass:
        return _shares(self._both, self._true, defined=self._true)

    def precision(self) -> ByClass:
        """0 for a class that is there and never predicted."""
        return _shares(self._both, self._predicted, defined=self._there)

    def f1(self) -> ByClass:
        return _shares(2 * self._both, self._there, defined=self._there)

    def iou(self) -> ByClass:
        """Intersection over union."""
        return _shares(self._both, self._there - self._both, defined=self._there)

    @property
    def _there(self) -> np.ndarray | int:
        """How often it is there or predicted; twice where it is both."""
        return self._predicted + self._true


def _shares(part: np.ndarray | int, whole: np.ndarray | int, defined: np.ndarray | int) -> ByClass:
    parts, wholes = np.atleast_1d(part), np.atleast_1d(whole)
    return {str(c): float(parts[c] / max(1, wholes[c])) for c in np.flatnonzero(defined)}


def macro(by_class: ByClass) -> float | None:
    """The mean over classes, each counting the same; None where there is none."""
    return sum(by_class.values()) / len(by_class) if by_class else None


def known(**figures: float | None) -> dict[str, float]:
    """The figures that are defined."""
    return {name: value for name, value in figures.items() if value is not None}
