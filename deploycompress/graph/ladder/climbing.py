"""The ladder: repairs of an INT8 file, one after the other, until it loses no more than is allowed.

Each rung keeps what came nearer to the source's outputs on samples that no range was taken from, and the task's metric
on the validation split says whether that is enough. The order is that of what they cost at run time: nothing for
another range, equalised channels and corrected biases; some of the speed for layers that stay in FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploycompress.contracts import Note
from deploycompress.errors import StageFailed
from deploycompress.graph.execution import Feed, run_onnx
from deploycompress.graph.ladder.bias_correction import correct_biases
from deploycompress.graph.ladder.equalization import equalize
from deploycompress.graph.ladder.exclusion import layer_names, ranked, time_shares, until
from deploycompress.graph.ladder.scales import scales_of
from deploycompress.graph.quantization import CALIBRATORS, quantize_onnx
from deploycompress.graph.schemes import SCHEMES

HELD_OUT = 0.25  # of the calibration samples, that tell how near a file comes
SEARCHED = 64  # calibration samples, of the rungs that try many files
EXCLUSION_S = 300.0
MOST_IN_FLOAT = 0.5  # of the layers

Lost = Callable[[Path], float]


@dataclass(frozen=True)
class Recipe:
    """How a file is quantized."""

    scheme: str
    calibrator: str = "minmax"
    equalized: bool = False
    corrected: bool = False
    in_float: tuple[str, ...] = ()  # layers by name

    def __str__(self) -> str:
        parts = [f"ranges by {self.calibrator}"]
        parts += ["equalised channels"] if self.equalized else []
        parts += ["corrected biases"] if self.corrected else []
        parts += [f"{len(self.in_float)} layers in FP32"] if self.in_float else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Tried:
    """One file; ``distance``: of its outputs from the source's, see ``distance``."""

    recipe: Recipe
    path: Path
    distance: float
    lost: float  # of the primary metric


class Ladder:
    """Repairs of one source; files lie in ``folder``."""

    def __init__(
        self, source: Path, feeds: Sequence[Feed], folder: Path, lost: Lost, threads: int = 1
    ) -> None:
        """``feeds``: calibration batches; ``lost``: of the primary metric by a file on the validation split."""
        kept = max(1, round(len(feeds) * (1 - HELD_OUT)))
        self._source, self._folder, self._lost, self._threads = source, folder, lost, threads
        self._feeds = list(feeds[:kept])
        self._held_out = list(feeds[kept:]) or list(feeds[-1:])
        self._expected = run_onnx(source, self._held_out)
        self._rewritten: dict[tuple[bool, bool], Path] = {}
        self._made = 0

    def climb(self, scheme: str, calibrator: str, allowed: float) -> tuple[Tried, list[Note]]:
        """The first file that loses at most ``allowed``, else the one that loses least; and what was tried."""
        best = self._tried(Recipe(scheme, calibrator))
        notes = [self._note("as configured", best)]
        for rung in (self._calibrators, self._equalized, self._corrected, self._in_float):
            if best.lost <= allowed:
                return best, notes
            for what, found in rung(best):
                better = found.lost < best.lost or (
                    found.lost == best.lost and found.distance < best.distance
                )
                notes.append(self._note(what, found))
                best = found if better else best
                if best.lost <= allowed:
                    break
        return best, notes

    # ---------------------------------------------------------------- the rungs

    def _calibrators(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        others = [name for name in CALIBRATORS if name != best.recipe.calibrator]
        recipes = [replace(best.recipe, calibrator=name) for name in others]
        nearest = min(recipes, key=lambda recipe: self._distance(self._build(recipe, few=True)))
        yield "calibrator", self._tried(nearest)

    def _equalized(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        yield "equalisation", self._tried(replace(best.recipe, equalized=True))

    def _corrected(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        yield "bias correction", self._tried(replace(best.recipe, corrected=True))

    def _in_float(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        """More and more layers: one, two, four, eight ..."""
        source = self._prepared(best.recipe)
        names = layer_names(source)
        scales = scales_of(best.path)

        def distance_without(name: str) -> float:
            return self._distance(self._build(replace(best.recipe, in_float=(name,)), scales=scales))

        times = time_shares(self._source, self._first(), names, self._threads)
        order = ranked(names, distance_without, best.distance, times, until(EXCLUSION_S))
        count = 1
        while order and count <= MOST_IN_FLOAT * len(names):
            recipe = replace(best.recipe, in_float=tuple(order[:count]))
            yield f"{count} layers in FP32", self._tried(recipe)
            if count >= len(order):
                break
            count = min(2 * count, len(order))

    # ---------------------------------------------------------------- files

    def _tried(self, recipe: Recipe) -> Tried:
        path = self._build(recipe)
        return Tried(recipe, path, self._distance(path), self._lost(path))

    def _build(self, recipe: Recipe, *, few: bool = False, scales: Mapping[str, Any] | None = None) -> Path:
        self._made += 1
        path = self._folder / f"{self._made}.onnx"
        feeds = [self._first()] if scales else self._few() if few else self._feeds
        quantize_onnx(
            self._prepared(recipe),
            path,
            feeds,
            scheme=recipe.scheme,
            calibrator="minmax" if scales else recipe.calibrator,
            in_float=recipe.in_float,
            scales=scales,
        )
        return path

    def _prepared(self, recipe: Recipe) -> Path:
        """The source in FP32 with the recipe's changes, made once."""
        wanted = (recipe.equalized, recipe.corrected)
        if wanted not in self._rewritten:
            path = self._source
            if recipe.equalized:
                path = self._folder / "equalized.onnx"
                equalize(self._source, path, self._feeds)
            if recipe.corrected:
                plain, path = path, self._folder / f"corrected{'.equalized' if recipe.equalized else ''}.onnx"
                correct_biases(plain, path, self._feeds, SCHEMES[recipe.scheme].reduce_range)
            self._rewritten[wanted] = path
        return self._rewritten[wanted]

    def _first(self) -> Feed:
        return self._feeds[0]

    def _few(self) -> list[Feed]:
        """Whole batches, of about as many samples as are searched with."""
        chosen, samples = [], 0
        for feed in self._feeds:
            if samples >= SEARCHED:
                break
            chosen.append(feed)
            samples += len(next(iter(feed.values())))
        return chosen

    def _distance(self, path: Path) -> float:
        try:
            found = run_onnx(path, self._held_out)
        except StageFailed:
            return float("inf")
        return max(
            distance([e[name] for e in self._expected], [f[name] for f in found])
            for name in self._expected[0]
        )

    def _note(self, what: str, tried: Tried) -> Note:
        message = f"{what} ({tried.recipe}): loses {tried.lost:.4g}, outputs {tried.distance:.3g} away"
        return Note("decision", message, "repair")


def distance(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Squared difference of two sets of outputs, as a share of the variance of the first."""
    before, after = (
        np.concatenate([a.reshape(len(a), -1) for a in arrays]).astype(np.float64)
        for arrays in (expected, found)
    )
    spread = float(((before - before.mean(0)) ** 2).sum())
    return float(((after - before) ** 2).sum()) / max(spread, 1e-30)
