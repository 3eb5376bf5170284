"""The candidates: what was asked for and what can be built here, each with what was found out about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploycompress.config.devices import LOCAL
from deploycompress.config.schema import TargetConfig
from deploycompress.graph.arbiter.building import compiler_of
from deploycompress.graph.arbiter.wanted import Wanted
from deploycompress.graph.compilers.recipe import Built, Recipe
from deploycompress.registry import COMPILERS, RUNTIMES

if TYPE_CHECKING:
    from deploycompress.graph.arbiter.checking import Checked


@dataclass
class Entry:
    """One candidate on its way: each step fills in what it found, ``reason`` says where the way ended."""

    recipe: Recipe
    threads: tuple[int, ...]
    changed: Mapping[str, Any] = field(default_factory=dict)  # options that the configuration gives
    built: Built | None = None
    checked: Checked | None = None
    reason: str = ""

    def id(self, threads: int) -> str:
        """Also the name of its folder: onnxruntime-int8-u8s8.t2."""
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.recipe.name)
        told = "".join(f".{key}-{value}" for key, value in self.changed.items())
        return f"{name}{told}.t{threads}"

    @property
    def files(self) -> list[Path]:
        if self.built is None:
            return []
        path = self.built.path
        return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


def missing(runtime: str, device: str) -> str | None:
    """Why artefacts of that runtime cannot be built here and run on the device; None when they can."""
    if device != LOCAL and not compiler_of(runtime).portable:
        return f"what is built for it here does not run on {device}"
    reason: str | None = RUNTIMES.load(runtime)().missing() or compiler_of(runtime).missing()
    return reason


def entries(
    wanted: Sequence[Wanted] | None,
    target: TargetConfig,
    threads: Sequence[int],
    facts: Mapping[str, Any],
    operators: Mapping[str, int],
) -> Iterator[Entry]:
    """Each candidate once, for a file with these ``operators``; ``wanted`` None: all that can be built here.

    Of those that run a checkpoint, and with it the model's own code, only the target's own runtime is then tried.
    """
    if wanted is None:
        files = [name for name in COMPILERS if compiler_of(name).reads == "onnx"]
        known = dict.fromkeys((*files, target.runtime))
        wanted = [Wanted(runtime=name) for name in known if not missing(name, target.device)]
    seen: set[str] = set()
    for one in wanted:
        for recipe in compiler_of(one.runtime).recipes(target.provider, facts, operators):
            made = replace(recipe, options={**recipe.options, **one.options})
            entry = Entry(made, tuple(dict.fromkeys(one.threads or threads)), one.options)
            fresh = tuple(n for n in entry.threads if entry.id(n) not in seen)
            if one.fits(recipe) and fresh:
                seen.update(entry.id(n) for n in fresh)
                yield replace(entry, threads=fresh)
