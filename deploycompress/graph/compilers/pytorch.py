"""PyTorch's artefacts: the checkpoint itself, run eager or compiled, in FP32 or with half the bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from deploycompress.artifact import Kind
from deploycompress.graph.compilers.recipe import Built, Recipe
from deploycompress.graph.execution import Feed
from deploycompress.measure.environment import BF16_X86
from deploycompress.writing import copy

RUNTIME = "pytorch"
EAGER = Recipe(RUNTIME, "fp32")
COMPILED = "compiled"  # in the place where INT8 has its scheme


class PyTorchCompiler:
    """All of them are one file: what differs is how it is run. The way of a GPU without TensorRT."""

    reads: ClassVar[Kind] = "checkpoint"
    portable: ClassVar[bool] = False

    def missing(self) -> str | None:
        from deploycompress.runtimes.pytorch import PyTorch

        return PyTorch().missing()

    def recipes(
        self, provider: str, facts: Mapping[str, Any], operators: Mapping[str, int]
    ) -> tuple[Recipe, ...]:
        kind = provider.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            return ()
        half: tuple[str, ...] = ("bf16",) if BF16_X86 & set(facts.get("flags", ())) else ()
        half = ("fp16", "bf16") if kind == "cuda" else half
        return (
            *(_recipe(of, compiled) for of in half for compiled in (True, False)),
            _recipe("fp32", True),
            EAGER,
        )

    def build(self, recipe: Recipe, source: Path, folder: Path, calibration: Iterable[Feed]) -> Built:
        return Built(copy(source, folder / "model"), "checkpoint")


def _recipe(precision: str, compiled: bool) -> Recipe:
    options = {"computes_in": precision, **({"compiled": True} if compiled else {})}
    return Recipe(RUNTIME, precision, COMPILED if compiled else "", options, EAGER.name)
