"""The build_engine stage: a runtime's own engine, built from an ONNX file on the device that will run it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deploycompress.artifact import Artifact, write_json
from deploycompress.config.base import StrictModel
from deploycompress.config.devices import LOCAL
from deploycompress.config.quantities import Size
from deploycompress.contracts import Event, Inputs, Note, Outcome, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed
from deploycompress.measure.environment import TENSORRT, gpu_name, system_libraries
from deploycompress.registry import RUNTIMES

if TYPE_CHECKING:
    from deploycompress.devices.jobs import Candidate

LARGEST_CHECKED_BATCH = 16
INSPECTED = "layers.json"  # as a building job names it


class BuildEngine(Stage):
    """Precision is the ONNX file's. Where the runtime cannot run, ``required`` decides: exit code 3, or a note."""

    accepts = frozenset({"onnx"})
    produces = frozenset({"engine"})
    libraries = ("tensorrt", "onnxruntime")
    compresses = False

    class Config(StrictModel):
        runtime: str = Field(
            "tensorrt",
            description="trtexec: TensorRT where Python has none; onnxruntime: its own file for this processor, which loads sooner",
        )
        required: bool = True
        workspace: Size | None = None
        optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
        largest_batch: Annotated[int, Field(ge=1)] | None = None  # of the profile; None: 16, or the target's
        version_compatible: bool = Field(False, description="The engine also runs on later versions")
        hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
            "none", description="The engine also runs on other GPUs, and may be slower for it"
        )
        dimensions: dict[str, tuple[int, int, int]] = {}  # other named dimensions: least, usual, most

    def reads(self) -> frozenset[str]:
        return frozenset({"target"})

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        from deploycompress.devices.jobs import open_device

        facts = open_device(context.target.device, context.devices).facts()
        known = {key: facts.get(key) for key in ("cpu", "flags", "gpu")}
        # Those of Python on this machine are in every key of the stage.
        wanted = (*getattr(self._runtime(), "libraries", ()), TENSORRT)
        installed = {n: v for n, v in facts.get("libraries", system_libraries()).items() if n in wanted}
        return {"missing": self._missing(context), "facts": known, "libraries": installed}

    def requires(self, context: RunContext) -> None:
        runtime = self._runtime()
        if not hasattr(runtime, "build"):
            raise ConfigError(
                f"build_engine: the runtime {self.config.runtime!r} builds no engines; use tensorrt, trtexec or onnxruntime"
            )
        missing = self._missing(context)
        if missing and self.config.required:
            raise EnvironmentMissing(
                f"build_engine: {self.config.runtime} cannot run on {context.target.device}: {missing}; or set "
                "required: false to go on without an engine"
            )

    def _missing(self, context: RunContext) -> str | None:
        from deploycompress.devices.jobs import open_device

        if context.target.device != LOCAL:
            return open_device(context.target.device, context.devices).missing(self.config.runtime)
        missing: str | None = self._runtime().missing()
        return missing

    def _runtime(self) -> Any:
        return RUNTIMES.load(self.config.runtime)()

    def inexact(self, context: RunContext) -> str | None:
        return "the runtime writes equal networks in more than one order"

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        runtime, source = self._runtime(), inputs["source"][0]
        missing = self._missing(context)
        if missing:
            note = Note("skipped", f"no engine was built: {missing}", self.config.runtime)
            context.emit(Event("decision", note.message))
            return Outcome(notes=(note,))
        path = workdir / runtime.engine_file
        profile = self._profile(source, context) if getattr(runtime, "bounded", False) else {}
        options = {
            "profile": profile,
            "workspace_bytes": self.config.workspace.value if self.config.workspace else None,
            "optimization_level": 0 if context.rehearsal else self.config.optimization_level,
            "version_compatible": self.config.version_compatible,
            "hardware_compatibility": ""
            if self.config.hardware_compatibility == "none"
            else self.config.hardware_compatibility,
        }
        built, inspected = self._built(source, path, options, context)
        details = {
            **source.details,
            **built,
            "runtime": self.config.runtime,
            **({"profile": profile} if profile else {}),
            **({"device": context.target.device} if context.target.device != LOCAL else {"gpu": gpu_name()}),
        }
        artifact = Artifact.of("", "engine", path, precision=source.precision, details=details)
        if inspected:
            built = {**built, "inspected": INSPECTED}
        return Outcome((artifact,), {"bytes": float(artifact.bytes)}, details=built)

    def _built(
        self, source: Artifact, path: Path, options: Mapping[str, Any], context: RunContext
    ) -> tuple[dict[str, Any], bool]:
        """The engine at ``path``, made on the target's device; what its runtime told, and whether of its layers too."""
        from deploycompress.devices.building import build_on
        from deploycompress.devices.jobs import open_device

        if context.target.device != LOCAL:
            device = open_device(context.target.device, context.devices)
            built = build_on(device, self._candidate("engine", source.path, context, options), path)
            return dict(built.told), built.inspected is not None
        runtime = self._runtime()
        here = {"provider": context.target.provider, "timing_cache": str(self._timing_cache(context))}
        try:
            told = runtime.build(source.main_file, path, {**options, **here})
        except (ValueError, RuntimeError) as error:
            raise StageFailed(f"build_engine: {error}") from error
        if hasattr(runtime, "inspect"):
            write_json(path.with_name(INSPECTED), runtime.inspect(path))
        return told, hasattr(runtime, "inspect")

    def _candidate(self, id: str, path: Path, context: RunContext, options: Mapping[str, Any]) -> Candidate:
        from deploycompress.devices.jobs import Candidate

        t = context.target
        return Candidate(id, path, self.config.runtime, t.provider, t.threads, options=options)

    def _timing_cache(self, context: RunContext) -> Path:
        """Of this GPU and version, in the store: what was timed once is not timed again."""
        key = {"gpu": gpu_name(), "tensorrt": _version()}
        return context.store.folder("timing_cache", key, lambda folder: None) / "timing.cache"

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """The engine is loaded again, run, and compared with ONNX Runtime on the same file."""
        if not outcome.artifacts:
            return {}
        from deploycompress.devices.answers import answers
        from deploycompress.devices.jobs import open_device
        from deploycompress.graph.execution import fixed_batch_of, run_onnx
        from deploycompress.graph.feeds import take
        from deploycompress.graph.schemes import reading
        from deploycompress.model.parity import LOWEST_COSINE, compare, to_numpy, worst

        source, engine = inputs["source"][0], outcome.artifacts[0]
        fixed = fixed_batch_of(source.main_file)
        sizes = (fixed,) if fixed else (1, min(LARGEST_CHECKED_BATCH, self._largest_batch(context)))
        feeds = [to_numpy(take(context.data.loader("val"), size)) for size in sizes]
        options = engine.details.get("options", {})
        device = open_device(context.target.device, context.devices)
        found = answers(device, self._candidate("engine", engine.path, context, options), feeds)
        read = reading(device.facts(), self.config.runtime, context.target.provider)
        expected = run_onnx(source.main_file, feeds, read if source.precision == "int8" else None)
        parity = worst([compare(e, f) for e, f in zip(expected, found, strict=True)])
        lowest = LOWEST_COSINE[source.precision]
        if parity.cosine < lowest and not context.rehearsal:
            raise StageFailed(
                f"the engine differs from the ONNX file: cosine {parity.cosine:.4f}, expected at least {lowest}"
            )
        return {"engine_cosine": parity.cosine}

    def _largest_batch(self, context: RunContext) -> int:
        return max(self.config.largest_batch or LARGEST_CHECKED_BATCH, context.target.batch_size)

    def _profile(self, source: Artifact, context: RunContext) -> dict[str, list[list[int]]]:
        """Least, usual and most of every dynamic input. Raises ConfigError for a dimension without bounds."""
        from deploycompress.graph.execution import inspect_onnx

        batch = (1, context.target.batch_size, self._largest_batch(context))
        profile = {}
        for name, spec in inspect_onnx(source.main_file)["inputs"].items():
            bounds: list[tuple[int, int, int]] = []
            for axis, size in enumerate(spec["shape"]):
                if isinstance(size, int):
                    bounds.append((size, size, size))
                elif axis == 0:
                    bounds.append(batch)
                elif size in self.config.dimensions:
                    bounds.append(self.config.dimensions[size])
                else:
                    raise ConfigError(
                        f"build_engine: input {name!r} has the dynamic dimension {size!r}; "
                        f"say its least, usual and largest size: dimensions: {{{size}: [1, 64, 256]}}"
                    )
            if any(low != high for low, _, high in bounds):
                profile[name] = [[b[i] for b in bounds] for i in range(3)]
        return profile


def _version() -> str | None:
    try:
        return version("tensorrt")
    except PackageNotFoundError:
        return None
