"""The compile stage: artefacts for several runtimes and precisions, of which the fastest that are still right are kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Duration, Points
from deploycompress.config.schema import TargetConfig
from deploycompress.contracts import Inputs, Outcome, Ref, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.graph.arbiter.wanted import Wanted
from deploycompress.registry import COMPILERS, RUNTIMES

EVERYTHING = {"MatMul": 1, "Conv": 1}  # operators of a file that is not there yet


class Compile(Stage):
    """In place of quantize and build_engine. What it decides by measurement is kept with what it made."""

    accepts = frozenset({"onnx", "checkpoint"})
    produces = frozenset({"onnx", "openvino", "engine", "checkpoint"})
    libraries = ("onnxruntime", "onnx", "numpy", "openvino", "nncf", "tensorrt", "torch", "triton")
    version = 2
    compresses = True

    class Config(StrictModel):
        candidates: Literal["auto"] | tuple[Wanted, ...] = Field(
            "auto", description="auto: all that this machine can build for the target's provider"
        )
        threads: tuple[Annotated[int, Field(ge=1)], ...] = Field(
            (), description="What each candidate is tried with; empty: one, and as many as the target has"
        )
        budget: Duration = Field(
            "10 min", validate_default=True, description="For building and measuring all of them"
        )
        max_drop: Points | None = Field(
            None,
            description="On the validation split; else what the accuracy gate leaves, else 1 pp of a share",
        )
        calibration: Annotated[int, Field(ge=1)] | None = None  # samples; None: the whole calibration split

    def inputs(self) -> Mapping[str, Ref]:
        return {"source": "last", "baseline": "baseline", "network": "checkpoint"}

    def opens(self, target: TargetConfig) -> frozenset[str]:
        """A network as it is only where the target's runtime runs it; all else is made from an ONNX file."""
        runs = target.runtime in RUNTIMES and "checkpoint" in RUNTIMES.load(target.runtime).accepts
        return self.accepts if runs else frozenset({"onnx"})

    def makes(self, target: TargetConfig) -> frozenset[str]:
        named = () if self.config.candidates == "auto" else self.config.candidates
        tried = {target.runtime, *(wanted.runtime for wanted in named)} & set(RUNTIMES)
        networks = any("checkpoint" in RUNTIMES.load(name).accepts for name in tried)
        return self.produces if networks else self.produces - {"checkpoint"}

    def reads(self) -> frozenset[str]:
        return frozenset({"target", "gates"})

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        """Another processor decides otherwise."""
        from deploycompress.devices.jobs import open_device

        facts = open_device(context.target.device, context.devices).facts()
        missing = {name: COMPILERS.load(name)().missing() for name in COMPILERS}
        known = {key: facts.get(key) for key in ("cpu", "cores", "flags", "gpu", "libraries")}
        compiler = shutil.which(os.environ.get("CXX", "g++")) is not None  # torch.compile wants one
        return {"facts": known, "missing": missing, "compiler": compiler}

    def requires(self, context: RunContext) -> None:
        from deploycompress.devices.jobs import open_device
        from deploycompress.graph.arbiter.building import compiler_of
        from deploycompress.graph.arbiter.entries import missing

        facts = open_device(context.target.device, context.devices).facts()
        for wanted in () if self.config.candidates == "auto" else self.config.candidates:
            reason = missing(wanted.runtime, context.target.device)
            if reason:
                raise EnvironmentMissing(f"compile: {wanted.runtime} cannot run here: {reason}")
            recipes = compiler_of(wanted.runtime).recipes(context.target.provider, facts, EVERYTHING)
            if not any(wanted.fits(recipe) for recipe in recipes):
                known = ", ".join(recipe.name for recipe in recipes) or "nothing"
                asked = "-".join(filter(None, (wanted.precision, wanted.scheme))) or "any precision"
                raise ConfigError(
                    f"compile: {wanted.runtime} has no recipe for {asked} on this processor with provider "
                    f"{context.target.provider}; it has {known}"
                )

    def inexact(self, context: RunContext) -> str | None:
        return "what is kept is chosen by what was measured"

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        if context.rehearsal:  # whatever fails here is only dropped, so there is nothing to learn
            return Outcome()
        from deploycompress.graph.arbiter.decision import Arbiter, Terms

        source = inputs["source"][0]
        networks = [a for a in inputs.get("network", ()) if a.kind == "checkpoint"]
        sources: dict[str, Artifact] = {a.kind: a for a in (*networks, source)}
        baseline = inputs["baseline"][0] if inputs.get("baseline") else source
        terms = Terms(
            None if self.config.candidates == "auto" else self.config.candidates,
            self.config.threads or tuple(sorted({1, context.target.threads}, reverse=True)),
            self.config.budget,
            self.config.max_drop,
            self.config.calibration,
        )
        with tempfile.TemporaryDirectory(dir=workdir, prefix=".compile-") as folder:
            return Arbiter(terms, sources, baseline, Path(folder), context).decide(workdir)
