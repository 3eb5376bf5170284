"""The export stage: a checkpoint becomes an ONNX file that computes the same."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from deploycompress.artifact import Artifact, canonical_json
from deploycompress.config.base import StrictModel
from deploycompress.contracts import Event, Inputs, Outcome, RunContext, Stage
from deploycompress.errors import EnvironmentMissing

CARRIED = ("input_scales",)  # what the checkpoint's maker says to whoever quantizes the file


class Export(Stage):
    """Batch normalisation folded, named dimensions dynamic, simplified where that holds."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"onnx"})
    version = 2
    libraries = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxsim", "onnxslim")

    class Config(StrictModel):
        opset: Annotated[int, Field(ge=13, le=25)] = 18
        simplify: bool | Literal["onnxsim", "onnxslim"] = Field(
            True,
            description="true: by onnxsim, or by onnxslim where that is installed and the first one fails",
        )

    def requires(self, context: RunContext) -> None:
        wanted = ("onnx", "onnxscript", "onnxruntime", *self._tools[:1])
        missing = [name for name in wanted if find_spec(name) is None]
        if missing:
            raise EnvironmentMissing(
                f"export needs {', '.join(missing)}; install with: pip install {' '.join(missing)}"
            )

    @property
    def _tools(self) -> tuple[str, ...]:
        from deploycompress.graph.simplify import TOOLS

        simplify = self.config.simplify
        return (simplify,) if isinstance(simplify, str) else TOOLS if simplify else ()

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.graph.execution import inspect_onnx
        from deploycompress.graph.export import export_onnx
        from deploycompress.graph.feeds import parity_feeds, shortened_feeds
        from deploycompress.graph.simplify import first_simplifier, simplify_onnx
        from deploycompress.model import checkpoint
        from deploycompress.model.parity import to_numpy, worst

        source = inputs["source"][0]
        # A simplifier never fails the run, so the rehearsal has nothing to learn from it.
        tools = () if context.rehearsal else self._tools
        with (
            tempfile.TemporaryDirectory(dir=workdir, prefix=".export-") as folder,
            first_simplifier(tools) as simplifier,
        ):
            module = checkpoint.load(source.path, context.model)
            feeds = parity_feeds(context.model, context.data.loader("val"))
            shorter, unchecked = shortened_feeds(module, context.model, feeds[-1])
            feeds += shorter
            raw = Path(folder) / "model.onnx"
            exported = export_onnx(
                module,
                context.model,
                raw,
                opset=self.config.opset,
                feeds=feeds,
                metadata={
                    "source": source.sha256,
                    "step": context.step,  # the digest of its key: the same for the same run
                    **{name: canonical_json(told) for name, told in context.data.interface.items()},
                },
            )
            path = workdir / ("model" if inspect_onnx(raw)["external"] else ".") / "model.onnx"
            path.parent.mkdir(exist_ok=True)
            simplified = simplify_onnx(raw, path, [to_numpy(feed) for feed in feeds], tools, simplifier)
        hop = worst(list(exported.parity))
        parity = {"export_max_abs": hop.max_abs, "export_relative": hop.relative}
        if simplified.parity is not None:
            parity["simplify_relative"] = simplified.parity.relative
        described = inspect_onnx(path)
        details = {
            "exporter": exported.exporter,
            "opset": described["opset"],
            "simplified": simplified.tool or False,
            "batchnorms_folded": len(exported.folded),
            **{key: source.details[key] for key in CARRIED if key in source.details},
        }
        artifact = Artifact.of(
            "",
            "onnx",
            path if path.parent == workdir else path.parent,
            precision=source.precision,
            details=details,
        )
        figures = {"bytes": float(artifact.bytes), "nodes": float(described["nodes"])}
        context.emit(Event("parity", f"exported by {exported.exporter}, opset {described['opset']}", parity))
        return Outcome(
            (artifact,),
            figures,
            notes=(*unchecked, *exported.notes, *simplified.notes),
            details={
                "parity": parity,
                "operators": described["ops"],
                "nodes_before": simplified.nodes_before,
            },
        )

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """What ``run`` found on its way: no file leaves it that differs from the model."""
        parity: Mapping[str, float] = outcome.details["parity"]
        return parity
