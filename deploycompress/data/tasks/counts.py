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
        self._both = self._predicted = self._true = np.zeros(0, np.int64)

    def add(self, predicted: Tensor, true: Tensor, classes: int) -> None:
        """Class indices below ``classes``, two integer tensors of one shape."""
        p, t = (values.reshape(-1).cpu().numpy() for values in (predicted, true))
        self.add_counts(*(np.bincount(values, minlength=classes) for values in (t[p == t], p, t)))

    def add_counts(self, both: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> None:
        """Counts of one batch, [classes] each."""
        self._both = both + (self._both if self._both.size else 0)
        self._predicted = predicted + (self._predicted if self._predicted.size else 0)
        self._true = true + (self._true if self._true.size else 0)

    def accuracy(self) -> float | None:
        """The share that is right; None where nothing was counted."""
        total = int(self._true.sum())
        return float(self._both.sum() / total) if total else None

    def recall(self) -> ByClass:
        return self._shares(self._both, self._true, self._true > 0)

    def precision(self) -> ByClass:
        """0 for a class that is there and never predicted."""
        return self._shares(self._both, self._predicted, self._there)

    def f1(self) -> ByClass:
        return self._shares(2 * self._both, self._predicted + self._true, self._there)

    def iou(self) -> ByClass:
        """Intersection over union."""
        return self._shares(self._both, self._predicted + self._true - self._both, self._there)

    @property
    def _there(self) -> np.ndarray:
        there: np.ndarray = self._predicted + self._true > 0
        return there

    @staticmethod
    def _shares(part: np.ndarray, whole: np.ndarray, defined: np.ndarray) -> ByClass:
        return {str(c): float(part[c] / max(1, whole[c])) for c in np.flatnonzero(defined)}


def macro(by_class: ByClass) -> float | None:
    """The mean over classes, each counting the same; None where there is none."""
    return sum(by_class.values()) / len(by_class) if by_class else None


def known(**figures: float | None) -> dict[str, float]:
    """The figures that are defined."""
    return {name: value for name, value in figures.items() if value is not None}
