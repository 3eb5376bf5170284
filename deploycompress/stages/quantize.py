"""The quantize stage: an ONNX file in INT8, with ranges from real calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.contracts import Event, Inputs, Outcome, RunContext, Stage
from deploycompress.errors import EnvironmentMissing, StageFailed


class Quantize(Stage):
    """ONNX Runtime's static Q/DQ; the scheme follows from the processor of the target, unless it is named."""

    accepts = frozenset({"onnx"})
    produces = frozenset({"onnx"})
    version = 2
    libraries = ("onnxruntime", "onnx", "numpy")
    compresses = True

    class Config(StrictModel):
        precision: Literal["int8"] = "int8"
        scheme: Literal["auto", "u8s8", "s8s8", "u8s8_reduced"] = "auto"
        calibration: Annotated[int, Field(ge=1)] | None = None  # samples; None: the whole calibration split

    def requires(self, context: RunContext) -> None:
        for name in ("onnx", "onnxruntime"):
            if find_spec(name) is None:
                raise EnvironmentMissing(f"quantize needs {name}; install it with: pip install {name}")

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        return {"scheme": self._scheme(context)}

    def _scheme(self, context: RunContext) -> str:
        from deploycompress.devices.jobs import open_device
        from deploycompress.graph.schemes import choose_scheme

        return choose_scheme(self.config.scheme, open_device(context.target.device).facts())

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.graph.calibration import calibration_feeds
        from deploycompress.graph.quantization import quantize_onnx

        source = inputs["source"][0]
        path = workdir / "model.onnx"
        feeds = calibration_feeds(
            context.data.loader("calibration"), source.main_file, self.config.calibration
        )
        quantized = quantize_onnx(source.main_file, path, feeds, scheme=self._scheme(context))
        before, after = (_validated(file, context) for file in (source.main_file, path))
        details = {
            **source.details,
            "scheme": quantized.scheme,
            "calibration_samples": quantized.samples,
        }
        artifact = Artifact.of("", "onnx", path, precision=self.config.precision, details=details)
        context.emit(
            Event("decision", f"scheme {quantized.scheme}", {"calibration_samples": quantized.samples})
        )
        return Outcome(
            (artifact,),
            {f"val_{name}": value for name, value in after.items()}
            | {f"val_{name}_before": value for name, value in before.items()}
            | {"bytes": float(artifact.bytes)},
            notes=quantized.notes,
            details={"scheme": quantized.scheme, "calibration_samples": quantized.samples},
        )

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """Not by elements: direction and decision. Untrained weights, as in the rehearsal, prove nothing."""
        from deploycompress.graph.bisect import first_difference
        from deploycompress.graph.execution import fixed_batch_of, run_onnx
        from deploycompress.graph.feeds import PARITY_BATCHES, take
        from deploycompress.model.parity import LOWEST_COSINE, compare, to_numpy, worst

        lowest = LOWEST_COSINE[self.config.precision]
        source, quantized = inputs["source"][0].main_file, outcome.artifacts[0].main_file
        fixed = fixed_batch_of(source)
        sizes = (fixed,) if fixed else PARITY_BATCHES
        feeds = [to_numpy(take(context.data.loader("val"), size)) for size in sizes]
        pairs = zip(run_onnx(source, feeds), run_onnx(quantized, feeds), strict=True)
        parity = worst([compare(before, after) for before, after in pairs])
        if parity.cosine < lowest and not context.rehearsal:
            begins = first_difference(source, quantized, feeds[0], lambda found: found.cosine < lowest)
            raise StageFailed(
                f"INT8 differs from its source: cosine {parity.cosine:.3f} between their outputs, expected at least "
                f"{lowest}{f'; {begins}' if begins else ''}; give more calibration data, or leave quantize out"
            )
        figures = {"quantize_cosine": parity.cosine}
        if parity.top1_agreement is not None:
            figures["quantize_top1_agreement"] = parity.top1_agreement
        return figures


def _validated(path: Path, context: RunContext) -> Mapping[str, float]:
    from deploycompress.graph.evaluation import evaluate_artifact
    from deploycompress.graph.execution import fixed_batch_of
    from deploycompress.runtimes.onnxruntime import OnnxRuntime

    options = {"threads": context.target.threads}
    loader = context.data.loader("val")
    return evaluate_artifact(OnnxRuntime(), path, options, loader, context.task, fixed_batch_of(path)).metrics
