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
from deploycompress.graph.ladder.exclusion import layer_names, ranked, saved_ms, until
from deploycompress.graph.ladder.scales import scales_of
from deploycompress.graph.quantization import CALIBRATORS, quantize_onnx
from deploycompress.graph.schemes import SCHEMES
from deploycompress.writing import clear

HELD_OUT = 0.25  # of the calibration samples, that tell how near a file comes
SEARCHED = 64  # calibration samples, of the rungs that try many files
EXCLUSION_S = 300.0
MOST_IN_FLOAT = 0.5  # of the layers

Lost = Callable[[Path], float]
Rung = Callable[["Tried"], Iterator[tuple[str, "Tried"]]]


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
        self,
        source: Path,
        feeds: Sequence[Feed],
        folder: Path,
        lost: Lost,
        threads: int = 1,
        scales: Mapping[str, Any] | None = None,
        in_float: Sequence[str] = (),
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        """``feeds``: calibration batches; ``lost``: of the primary metric by a file on the validation split.

        ``scales`` and ``in_float``: what a training with the values of INT8 wants, as ``scales_by_layer`` gives it.
        ``reading``: options of ONNX Runtime for files in INT8, see ``schemes.reading``.
        """
        kept = max(1, min(len(feeds) - 1, round(len(feeds) * (1 - HELD_OUT))))
        self._source, self._folder, self._lost, self._threads = source, folder, lost, threads
        self._scales, self._always_in_float = scales or {}, tuple(in_float)
        self._reading = reading
        self._feeds = list(feeds[:kept])
        self._held_out = list(feeds[kept:]) or list(
            feeds[-1:]
        )  # of a single batch there is nothing to hold out
        self._expected = run_onnx(source, self._held_out)
        self._rewritten: dict[Recipe, Path] = {}
        self._made = 0

    def climb(self, first: Path, recipe: Recipe, lost: float, allowed: float) -> tuple[Tried, list[Note]]:
        """The first file that loses at most ``allowed``, else the one that loses least; and what was tried.

        ``first``: the file that was made by ``recipe``, and what it loses. A rung that fails is passed over.
        """
        best = Tried(recipe, first, self._distance(first), lost)
        notes = [self._note("as configured", best)]
        for name, rung in self._rungs():
            try:
                for what, found in rung(best):
                    better = (found.lost, found.distance) < (best.lost, best.distance)
                    notes.append(self._note(what, found))
                    best = found if better else best
                    if best.lost <= allowed:
                        return best, notes
            except (
                Exception
            ) as error:  # of libraries, on a file that is theirs no more; there is one that works
                notes.append(Note("skipped", f"{name} failed: {type(error).__name__}: {error}", "repair"))
        return best, notes

    def nearest_calibrator(self, scheme: str) -> tuple[str, list[Note]]:
        """The one of all whose file comes nearest to the source on samples that no range was taken from.

        Raises StageFailed where none of them makes a file.
        """
        found: dict[str, float] = {}
        told: list[Note] = []
        for name in CALIBRATORS:
            try:
                found[name] = self._distance_of(Recipe(scheme, name))
                told.append(Note("decision", f"outputs {found[name]:.3g} away", f"calibrator {name}"))
            except StageFailed as error:  # a mask of minus infinity is no range for a histogram
                told.append(Note("skipped", str(error), f"calibrator {name}"))
        if not found:
            raise StageFailed(f"no calibrator makes a file: {told[0].message}")
        return min(found, key=lambda name: found[name]), told

    # ---------------------------------------------------------------- the rungs

    def _rungs(self) -> list[tuple[str, Rung]]:
        """In the order of what they cost. Scales that were trained with are of the weights as they are."""
        last: tuple[str, Rung] = ("layers in FP32", self._in_float)
        if self._scales:
            return [last]
        return [
            ("calibrator", self._calibrators),
            ("equalisation", self._equalized),
            ("bias correction", self._corrected),
            last,
        ]

    def _calibrators(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        others = [name for name in CALIBRATORS if name != best.recipe.calibrator]
        recipes = [replace(best.recipe, calibrator=name) for name in others]
        nearest = min(recipes, key=self._distance_of)
        yield "calibrator", self._tried(nearest)

    def _equalized(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        yield "equalisation", self._tried(replace(best.recipe, equalized=True))

    def _corrected(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        yield "bias correction", self._tried(replace(best.recipe, corrected=True))

    def _in_float(self, best: Tried) -> Iterator[tuple[str, Tried]]:
        """More and more layers: one, two, four, eight ..."""
        names, scales = layer_names(self._source), scales_of(best.path)

        def distance_without(name: str) -> float:
            return self._distance_of(replace(best.recipe, in_float=(name,)), scales)

        saved = saved_ms(self._source, best.path, self._feeds[0], self._threads)
        order = ranked(names, distance_without, best.distance, saved, until(EXCLUSION_S))
        count = 1
        while order and count <= MOST_IN_FLOAT * len(names):
            yield f"{count} layers in FP32", self._tried(replace(best.recipe, in_float=tuple(order[:count])))
            if count >= len(order):
                break
            count = min(2 * count, len(order))

    # ---------------------------------------------------------------- files

    def _tried(self, recipe: Recipe) -> Tried:
        path = self._build(recipe, self._feeds, self._scales)
        return Tried(recipe, path, self._distance(path), self._lost(path))

    def _distance_of(self, recipe: Recipe, scales: Mapping[str, Any] | None = None) -> float:
        """Of a file that is not kept: with few samples, or with ``scales`` that are known."""
        path = self._build(recipe, self._feeds[:1] if scales else self._few(), scales)
        try:
            return self._distance(path)
        finally:
            clear(path)

    def _build(self, recipe: Recipe, feeds: Sequence[Feed], scales: Mapping[str, Any] | None = None) -> Path:
        self._made += 1
        path = self._folder / f"{self._made}.onnx"
        quantize_onnx(
            self._prepared(recipe),
            path,
            feeds,
            scheme=recipe.scheme,
            calibrator="minmax" if scales else recipe.calibrator,
            in_float=(*self._always_in_float, *recipe.in_float),
            scales=scales,
        )
        return path

    def _prepared(self, recipe: Recipe) -> Path:
        """The source in FP32 with the recipe's changes, made once."""
        wanted = replace(recipe, calibrator="", in_float=recipe.in_float if recipe.corrected else ())
        if wanted not in self._rewritten:
            path = self._source
            if recipe.equalized:
                path = self._folder / "equalized.onnx"
                equalize(self._source, path, self._feeds)
            if recipe.corrected:
                plain, path = path, self._folder / f"corrected{len(self._rewritten)}.onnx"
                reduced = SCHEMES[recipe.scheme].reduce_range
                correct_biases(plain, path, self._feeds, reduced, recipe.in_float)
            self._rewritten[wanted] = path
        return self._rewritten[wanted]

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
            found = run_onnx(path, self._held_out, self._reading)
        except StageFailed:
            return float("inf")
        pairs = zip(self._expected, found, strict=True)
        each = [[distance(before[name], after[name]) for name in before] for before, after in pairs]
        return float(np.mean(each, axis=0).max())

    def _note(self, what: str, tried: Tried) -> Note:
        message = f"{what} ({tried.recipe}): loses {tried.lost:.4g}, outputs {tried.distance:.3g} away"
        return Note("decision", message, "repair")


def distance(expected: np.ndarray, found: np.ndarray) -> float:
    """Squared difference of two outputs [samples, ...], as a share of the variance of the first."""
    before, after = (array.reshape(len(array), -1).astype(np.float64) for array in (expected, found))
    spread = float(((before - before.mean(0)) ** 2).sum())
    return float(((after - before) ** 2).sum()) / max(spread, 1e-30)
