"""OpenVINO's artefacts: its own files in FP32, which also run in BF16, and in INT8 by NNCF."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from deploycompress.artifact import Kind
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.compilers.recipe import Built, Recipe
from deploycompress.graph.execution import Feed, inspect_onnx
from deploycompress.measure.environment import BF16_X86
from deploycompress.writing import saving

RUNTIME = "openvino"
ATTENTION = {"Softmax", "LayerNormalization"}  # both in one file: a transformer


class OpenVinoCompiler:
    """What computes in BF16 is chosen when the file is loaded, where the processor has it."""

    reads: ClassVar[Kind] = "onnx"
    portable: ClassVar[bool] = True

    def missing(self) -> str | None:
        absent = [name for name in ("openvino", "nncf") if find_spec(name) is None]
        return (
            f"{' and '.join(absent)} not installed; pip install 'deploycompress[openvino]'"
            if absent
            else None
        )

    def recipes(
        self, provider: str, facts: Mapping[str, Any], operators: Mapping[str, int]
    ) -> tuple[Recipe, ...]:
        if provider not in ("cpu", "gpu", "npu"):
            return ()
        static = {"static_shapes": True}
        half = ("bf16",) if provider == "cpu" and BF16_X86 & set(facts.get("flags", ())) else ()
        half = ("fp16",) if provider == "gpu" else half
        return (
            *(Recipe(RUNTIME, of, "", {"computes_in": of, **static}, f"{RUNTIME}/fp32") for of in half),
            Recipe(RUNTIME, "int8", options=static),
            *(Recipe(RUNTIME, "int8", of, {"computes_in": of, **static}, f"{RUNTIME}/int8") for of in half),
            Recipe(RUNTIME, "fp32", options=static),
        )

    def build(self, recipe: Recipe, source: Path, folder: Path, calibration: Iterable[Feed]) -> Built:
        import openvino

        place = folder / "model"
        place.mkdir()
        try:
            model = openvino.convert_model(source)
        except Exception as error:  # OpenVINO raises RuntimeError, and its front ends classes of their own
            raise StageFailed(f"OpenVINO does not read {source.name}: {error}") from error
        if recipe.precision == "int8":
            transformer = set(inspect_onnx(source)["ops"]) >= ATTENTION
            model = _quantized(model, transformer, calibration)
        with saving(place / "model.xml"):
            openvino.save_model(model, place / "model.xml", compress_to_fp16=False)
        return Built(place, "openvino")


def _quantized(model: Any, transformer: bool, calibration: Iterable[Feed]) -> Any:
    import nncf

    feeds = [dict(feed) for feed in calibration]
    if not feeds:
        raise ConfigError("there are no calibration data")
    names = {name for port in model.inputs for name in port.get_names()}
    wanted = [{name: array for name, array in feed.items() if name in names} for feed in feeds]
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(wanted),
            subset_size=len(wanted),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
    except Exception as error:  # NNCF raises whatever happens to fail
        raise StageFailed(f"NNCF does not quantize the model: {type(error).__name__}: {error}") from error
