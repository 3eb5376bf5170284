"""ONNX Runtime's artefacts: ONNX files in FP32, FP16 and INT8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from deploycompress.artifact import Kind
from deploycompress.graph.compilers.recipe import Built, Recipe, copied
from deploycompress.graph.execution import Feed

RUNTIME = "onnxruntime"
PRODUCTS = {"MatMul", "Gemm", "LSTM", "Attention"}  # what dynamic quantization is about


class OnnxRuntimeCompiler:
    """On the CPU, INT8 in each scheme; on others, FP16 and INT8 with symmetric activations."""

    reads: ClassVar[Kind] = "onnx"
    portable: ClassVar[bool] = True

    def missing(self) -> str | None:
        return None if find_spec("onnxruntime") else "onnxruntime is not installed; pip install onnxruntime"

    def recipes(
        self, provider: str, facts: Mapping[str, Any], operators: Mapping[str, int]
    ) -> tuple[Recipe, ...]:
        from deploycompress.graph.schemes import choose_scheme, known_schemes

        schemes = known_schemes(facts) if provider == "cpu" else ("s8s8_symmetric",)
        found = [Recipe(RUNTIME, "fp32")]
        if provider != "cpu":
            found.append(Recipe(RUNTIME, "fp16"))
        found += [Recipe(RUNTIME, "int8", scheme) for scheme in schemes]
        if provider == "cpu" and PRODUCTS & set(operators):
            found.append(Recipe(RUNTIME, "int8", choose_scheme("dynamic", facts)))
        return tuple(found)

    def build(self, recipe: Recipe, source: Path, folder: Path, calibration: Iterable[Feed]) -> Built:
        path = folder / "model.onnx"
        if recipe.precision == "fp32":
            return copied(source, folder)
        if recipe.precision in ("fp16", "bf16"):
            from deploycompress.graph.half import to_half

            to_half(source, path, recipe.precision)
            return Built(path, "onnx")
        from deploycompress.graph.quantization import quantize_dynamic_onnx, quantize_onnx
        from deploycompress.graph.schemes import DYNAMIC

        if recipe.scheme in DYNAMIC:
            return Built(path, "onnx", quantize_dynamic_onnx(source, path, recipe.scheme).notes)
        return Built(path, "onnx", quantize_onnx(source, path, calibration, scheme=recipe.scheme).notes)
