"""TensorRT's engines: built from a file whose tensors and Q/DQ nodes decide the precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from deploycompress.artifact import Kind
from deploycompress.errors import StageFailed
from deploycompress.graph.compilers.recipe import Built, Recipe
from deploycompress.graph.execution import Feed, inspect_onnx

RUNTIME = "tensorrt"
LARGEST_BATCH = 16


class TensorRTCompiler:
    """FP16 first: INT8 is little faster on many GPUs, and slower on some."""

    reads: ClassVar[Kind] = "onnx"
    portable: ClassVar[bool] = False

    def missing(self) -> str | None:
        from deploycompress.runtimes.tensorrt import TensorRT

        return TensorRT().missing()

    def recipes(
        self, provider: str, facts: Mapping[str, Any], operators: Mapping[str, int]
    ) -> tuple[Recipe, ...]:
        if not provider.startswith("cuda"):
            return ()
        return (
            Recipe(RUNTIME, "fp16"),
            Recipe(RUNTIME, "int8", "s8s8_symmetric"),
            Recipe(RUNTIME, "bf16"),
            Recipe(RUNTIME, "fp32"),
        )

    def build(self, recipe: Recipe, source: Path, folder: Path, calibration: Iterable[Feed]) -> Built:
        from deploycompress.graph.half import to_half
        from deploycompress.graph.quantization import quantize_onnx
        from deploycompress.runtimes.tensorrt import TensorRT

        prepared, path = folder / "model.onnx", folder / "model.engine"
        if recipe.precision in ("fp16", "bf16"):
            to_half(source, prepared, recipe.precision)
        elif recipe.precision == "int8":
            quantize_onnx(source, prepared, calibration, scheme=recipe.scheme)
        else:
            prepared = source
        profile = _profile(source)
        try:
            TensorRT().build(prepared, path, {"profile": profile})
        except (ValueError, RuntimeError) as error:
            raise StageFailed(str(error)) from error
        return Built(path, "engine", details={"profile": profile})


def _profile(source: Path) -> dict[str, list[list[int]]]:
    """Batches up to 16. Raises StageFailed for another dimension without bounds."""
    profile = {}
    for name, spec in inspect_onnx(source)["inputs"].items():
        open_ends = [axis for axis, size in enumerate(spec["shape"]) if not isinstance(size, int)]
        if open_ends and open_ends != [0]:
            raise StageFailed(
                f"input {name!r} has other dynamic dimensions than its batch; use build_engine, whose dimensions say "
                "their least, usual and largest size"
            )
        if open_ends:
            rest = spec["shape"][1:]
            profile[name] = [[1, *rest], [1, *rest], [LARGEST_BATCH, *rest]]
    return profile
