"""Builds artefacts, each in a process of its own, since a library that makes one may crash or not end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploycompress.artifact import Kind, write_json
from deploycompress.contracts import Note
from deploycompress.errors import DeployCompressError, StageFailed
from deploycompress.graph.compilers.recipe import Built, Compiler, Recipe, copied
from deploycompress.graph.execution import Feed
from deploycompress.registry import COMPILERS, RUNTIMES
from deploycompress.writing import saving


def compiler_of(runtime: str) -> Compiler:
    """The one in the registry; any other runtime runs the ONNX file as it is."""
    if runtime in COMPILERS:
        compiler: Compiler = COMPILERS.load(runtime)()
        return compiler
    return AsItIs(runtime)


class AsItIs:
    """Of a runtime that nothing is known of but that it opens ONNX files."""

    reads: ClassVar[Kind] = "onnx"
    portable: ClassVar[bool] = True

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime

    def missing(self) -> str | None:
        return None

    def recipes(
        self, provider: str, facts: Mapping[str, Any], operators: Mapping[str, int]
    ) -> tuple[Recipe, ...]:
        return (Recipe(self._runtime, "fp32"),) if "onnx" in RUNTIMES.load(self._runtime).accepts else ()

    def build(self, recipe: Recipe, source: Path, folder: Path, calibration: Iterable[Feed]) -> Built:
        return copied(source, folder)


def save_feeds(feeds: Iterable[Feed], folder: Path) -> None:
    """For processes that are not this one."""
    folder.mkdir()
    for number, feed in enumerate(feeds):
        arrays: dict[str, Any] = dict(feed)
        with saving(folder / f"{number:06d}.npz") as place:
            np.savez(place, **arrays)


def build_apart(recipe: Recipe, source: Path, folder: Path, calibration: Path, timeout_s: float) -> Built:
    """What the recipe makes of ``source``, below ``folder``; ``calibration`` holds what ``save_feeds`` wrote.

    Raises StageFailed when it cannot be built, crashes or takes more than ``timeout_s``.
    """
    folder.mkdir(parents=True)
    made = folder / "made"
    made.mkdir()
    job = folder / "job.json"
    write_json(
        job,
        {
            "recipe": recipe.to_json(),
            "source": str(source),
            "folder": str(made),
            "calibration": str(calibration),
            "search_path": sys.path,
        },
    )
    try:
        ended = subprocess.run(
            [sys.executable, "-m", __name__, str(job)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise StageFailed(f"building it took more than {timeout_s:.0f} s, its share of the budget") from None
    answer = folder / "answer.json"
    if ended.returncode or not answer.is_file():
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"code {ended.returncode}"
        if ended.returncode < 0:
            names = {int(s): s.name for s in signal.Signals}
            how = names.get(-ended.returncode, how)
        raise StageFailed(f"its build was ended by {how}: {last}")
    told = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in told:
        raise StageFailed(told["error"])
    notes = tuple(Note(**note) for note in told["notes"])
    return Built(made / told["path"], told["kind"], notes, told["details"])


def _main(job: Path) -> None:
    told = json.loads(job.read_text(encoding="utf-8"))
    sys.path[:] = told["search_path"]
    recipe, folder = Recipe(**told["recipe"]), Path(told["folder"])
    try:
        built = compiler_of(recipe.runtime).build(
            recipe, Path(told["source"]), folder, _saved(Path(told["calibration"]))
        )
        notes = [vars(note) for note in built.notes]
        place = built.path.relative_to(folder).as_posix()
        answer = {"path": place, "kind": built.kind, "notes": notes, "details": dict(built.details)}
    except DeployCompressError as error:
        answer = {"error": str(error)}
    write_json(job.with_name("answer.json"), answer)


def _saved(folder: Path) -> Iterator[Feed]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in arrays.files}


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
