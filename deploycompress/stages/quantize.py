"""The quantize stage: an ONNX file in INT8, with ranges from real calibration data, or in half precision."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deploycompress.artifact import Artifact, Kind
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Points
from deploycompress.contracts import Event, Inputs, Note, Outcome, Ref, RunContext, Runtime, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed
from deploycompress.graph.compilers.openvino import OpenVinoCompiler
from deploycompress.registry import RUNTIMES
from deploycompress.writing import move

if TYPE_CHECKING:
    from deploycompress.graph.evaluation import Evaluation


NNCF = "nncf"
NNCF_TIMEOUT_S = 3600.0
UNREPAIRED = ("dynamic", "dynamic_reduced", NNCF)  # schemes that no repair is known for
OPENVINO = {"runtime": "openvino", "options": {"static_shapes": True}}


class Quantize(Stage):
    """By ONNX Runtime, or by NNCF for OpenVINO; the scheme follows from the processor of the target, unless it is named.

    Where the accuracy gate or ``max_drop`` says what may be lost, what loses more is repaired: other ranges, equalised
    channels, corrected biases, and at last layers in FP32. What none of that helps is made all the same, with a warning.
    """

    accepts = frozenset({"onnx"})
    produces = frozenset({"onnx", "openvino"})
    version = 5
    libraries = ("onnxruntime", "onnx", "numpy", "openvino", "nncf")
    compresses = True

    class Config(StrictModel):
        precision: Literal["int8", "fp16", "bf16"] = "int8"
        scheme: Literal["auto", "u8s8", "s8s8", "u8s8_reduced", "s8s8_symmetric", "dynamic", "nncf"] = Field(
            "auto",
            description="Of INT8; dynamic: matrix products alone, with ranges taken as they come; nncf: for OpenVINO",
        )
        calibrator: Literal[
            "minmax", "percentile_99.999", "percentile_99.99", "percentile_99.9", "entropy", "search"
        ] = Field("minmax", description="search: the one that comes nearest on calibration samples held out")
        calibration: Annotated[int, Field(ge=1)] | None = None  # samples; None: the whole calibration split
        repair: bool = True
        max_drop: Points | None = Field(
            None, description="On the validation split; else what the accuracy gate leaves"
        )

    def inputs(self) -> Mapping[str, Ref]:
        return {"source": "last", "baseline": "baseline"}

    def reads(self) -> frozenset[str]:
        return frozenset({"gates"})

    def requires(self, context: RunContext) -> None:
        for name in ("onnx", "onnxruntime"):
            if find_spec(name) is None:
                raise EnvironmentMissing(f"quantize needs {name}; install it with: pip install {name}")
        missing = _reader(self.config.precision).missing()
        if missing:
            raise EnvironmentMissing(f"quantize checks {self.config.precision} in another runtime: {missing}")
        if self.config.scheme in UNREPAIRED and self.config.precision != "int8":
            raise ConfigError(
                f"quantize: scheme {self.config.scheme} is of int8, and precision is {self.config.precision}; "
                "leave one of the two out"
            )
        if self.config.scheme == NNCF and (missing := OpenVinoCompiler().missing()):
            raise EnvironmentMissing(f"quantize: {missing}")

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        scheme = self._scheme(context)
        place = {"provider": context.target.provider} if scheme == NNCF else {}
        return {"scheme": scheme, "place": {**_place(self.config.precision, context), **place}}

    def _scheme(self, context: RunContext) -> str:
        """Resolved; empty in half precision."""
        from deploycompress.graph.schemes import target_scheme

        if self.config.precision != "int8" or self.config.scheme == NNCF:
            return self.config.scheme if self.config.precision == "int8" else ""
        return target_scheme(self.config.scheme, context)

    def inexact(self, context: RunContext) -> str | None:
        return (
            "a repair may choose layers by measured latencies"
            if self.config.max_drop or "accuracy" in context.gates
            else None
        )

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.graph.execution import fixed_batch_of

        source, scheme = inputs["source"][0], self._scheme(context)
        fixed = fixed_batch_of(source.main_file)
        path = workdir / "model.onnx"
        before = _validated(source.main_file, context)
        details: dict[str, Any] = {}
        if self.config.precision != "int8":
            from deploycompress.graph.half import to_half

            to_half(source.main_file, path, self.config.precision)
            notes: tuple[Note, ...] = ()
            details = _place(self.config.precision, context)
        elif scheme == NNCF:
            path, notes = _by_nncf(source, workdir, self.config.calibration, context)
            details = {"scheme": scheme, **OPENVINO, "provider": context.target.provider}
            details |= {"batch": fixed} if fixed else {}
        elif scheme in UNREPAIRED:
            from deploycompress.graph.quantization import quantize_dynamic_onnx

            notes = quantize_dynamic_onnx(source.main_file, path, scheme).notes
            details = {"scheme": scheme}
        else:
            details, notes = self._static(inputs, path, scheme, before, context)
        after = _validated(path, context, self.config.precision, scheme, fixed)
        if scheme in ("", *UNREPAIRED):
            notes = (*notes, *self._unrepaired(inputs, before, after, context))
        kind: Kind = "openvino" if scheme == NNCF else "onnx"
        artifact = Artifact.of(
            "", kind, path, precision=self.config.precision, details={**source.details, **details}
        )
        told = f"scheme {scheme}" if scheme else self.config.precision
        context.emit(Event("decision", told, {k: v for k, v in details.items() if isinstance(v, int)}))
        return Outcome(
            (artifact,),
            {f"val_{name}": value for name, value in after.metrics.items()}
            | {f"val_{name}_before": value for name, value in before.metrics.items()}
            | {"bytes": float(artifact.bytes)},
            notes=notes,
            details=details,
        )

    def _unrepaired(
        self, inputs: Inputs, before: Evaluation, after: Evaluation, context: RunContext
    ) -> Iterator[Note]:
        """There are repairs of static INT8 alone; of anything else a warning, where it loses more than is allowed."""
        from deploycompress.graph.allowance import allowance, loss

        primary = context.task.primary
        lost = loss(primary, before, after) or 0.0
        allowed, warnings = allowance(
            self.config.max_drop, context.gates, self._spent(inputs, before, context)
        )
        yield from warnings
        if allowed is not None and lost > allowed and not context.rehearsal:
            yield Note("warning", f"it loses {lost:.4g} of {primary.name}, and may lose {allowed:.4g}")

    def _spent(self, inputs: Inputs, before: Evaluation, context: RunContext) -> Callable[[], float | None]:
        """What the source has lost already against the baseline, asked only where it matters."""
        from deploycompress.graph.allowance import loss

        def spent() -> float | None:
            given = inputs.get("baseline", ())
            if not given or given[0].sha256 == inputs["source"][0].sha256:
                return 0.0
            return loss(context.task.primary, _validated(given[0].main_file, context), before)

        return spent

    def _static(
        self, inputs: Inputs, path: Path, scheme: str, before: Evaluation, context: RunContext
    ) -> tuple[dict[str, Any], tuple[Note, ...]]:
        """Calibrated, and repaired where it is known what may be lost."""
        from deploycompress.graph.allowance import allowance, loss
        from deploycompress.graph.calibration import calibration_feeds
        from deploycompress.graph.execution import inspect_onnx
        from deploycompress.graph.ladder.climbing import Ladder, Recipe
        from deploycompress.graph.quantization import quantize_onnx

        source, primary = inputs["source"][0], context.task.primary
        loader = context.data.loader("calibration")
        scales, in_float, learned = _learned_scales(source, scheme)
        calibrator, searched = self._calibrator(source, scheme, path.parent, context)
        quantized = quantize_onnx(
            source.main_file,
            path,
            calibration_feeds(loader, source.main_file, self.config.calibration),
            scheme=scheme,
            calibrator=calibrator,
            in_float=in_float,
            scales=scales,
        )
        details = {"scheme": scheme, "calibration_samples": quantized.samples, "calibrator": calibrator}
        details |= {"learned_scales": len(scales)} if scales else {}

        def lost(made: Path) -> float:
            return loss(primary, before, _validated(made, context, "int8")) or 0.0

        notes = (*quantized.notes, *learned, *searched)
        if not self.config.repair or context.rehearsal:
            return details, notes
        if inspect_onnx(source.main_file)["external"]:
            return details, (
                *notes,
                Note("skipped", "its weights lie beside the file, which is not repaired so"),
            )
        allowed, warnings = allowance(
            self.config.max_drop, context.gates, self._spent(inputs, before, context)
        )
        if allowed is None or (loses := lost(path)) <= allowed:
            return details, (*notes, *warnings)
        message = f"it loses {loses:.4g} of {primary.name}, and may lose {allowed:.4g}: repairing"
        context.emit(Event("decision", message))
        feeds = list(calibration_feeds(loader, source.main_file, self.config.calibration))
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".repair-") as folder:
            threads = context.target.threads
            reading = _reading(context, "int8")
            ladder = Ladder(source.main_file, feeds, Path(folder), lost, threads, scales, in_float, reading)
            best, told = ladder.climb(path, Recipe(scheme, calibrator), loses, allowed)
            if best.path != path:
                move(best.path, path)
        if best.lost > allowed:
            message = (
                f"no repair is enough: the best one ({best.recipe}) loses {best.lost:.4g} of {primary.name} on the "
                f"validation split, and {allowed:.4g} are allowed"
            )
            told.append(Note("warning", message))
            context.emit(Event("warning", message))
        return {**details, "repair": str(best.recipe)}, (*notes, *warnings, *told)

    def _calibrator(
        self, source: Artifact, scheme: str, workdir: Path, context: RunContext
    ) -> tuple[str, tuple[Note, ...]]:
        """As configured, or searched for."""
        from deploycompress.graph.calibration import calibration_feeds
        from deploycompress.graph.ladder.climbing import Ladder

        if self.config.calibrator != "search":
            return self.config.calibrator, ()
        if context.rehearsal:
            return "minmax", ()
        loader = context.data.loader("calibration")
        feeds = list(calibration_feeds(loader, source.main_file, self.config.calibration))
        context.emit(Event("progress", "searching for the calibrator"))
        with tempfile.TemporaryDirectory(dir=workdir, prefix=".calibrators-") as folder:
            reading = _reading(context, "int8")
            ladder = Ladder(source.main_file, feeds, Path(folder), lambda path: 0.0, reading=reading)
            chosen, told = ladder.nearest_calibrator(scheme)
        return chosen, tuple(told)

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """Not by elements: direction and decision. Untrained weights, as in the rehearsal, prove nothing."""
        from deploycompress.graph.bisect import first_difference
        from deploycompress.graph.execution import fixed_batch_of, run, run_onnx
        from deploycompress.graph.feeds import PARITY_BATCHES, take
        from deploycompress.model.parity import LOWEST_COSINE, compare, to_numpy, worst

        source, quantized = inputs["source"][0].main_file, outcome.artifacts[0].main_file
        fixed = fixed_batch_of(source)
        sizes = (fixed,) if fixed else PARITY_BATCHES
        feeds = [to_numpy(take(context.data.loader("val"), size)) for size in sizes]
        precision, scheme = self.config.precision, self.config.scheme
        own = outcome.artifacts[0].details.get("options", {})
        options = {"threads": 1, **own, **_reading(context, precision, scheme)}
        found = run(_reader(precision, scheme), quantized, feeds, options)
        pairs = zip(run_onnx(source, feeds), found, strict=True)
        lowest = LOWEST_COSINE[precision]
        parity = worst([compare(before, after) for before, after in pairs])
        if parity.cosine < lowest and not context.rehearsal:
            begins = None
            if quantized.suffix == ".onnx":
                begins = first_difference(source, quantized, feeds[0], lambda found: found.cosine < lowest)
            raise StageFailed(
                f"{precision.upper()} differs from its source: cosine {parity.cosine:.3f} between their outputs, expected at "
                f"least {lowest}{f'; {begins}' if begins else ''}; give more calibration data, or leave quantize out"
            )
        figures = {"quantize_cosine": parity.cosine}
        if parity.top1_agreement is not None:
            figures["quantize_top1_agreement"] = parity.top1_agreement
        return figures


def _learned_scales(source: Artifact, scheme: str) -> tuple[dict[str, Any], list[str], tuple[Note, ...]]:
    """Of what the layers read, from a training with the values of INT8, with the nodes that stay in FP32 for it.

    A note says so, or that they do not fit the scheme.
    """
    from deploycompress.graph.ladder.scales import scales_by_layer
    from deploycompress.graph.schemes import SCHEMES

    known = source.details.get("input_scales")
    if known is None:
        return {}, [], ()
    trained = SCHEMES[known["scheme"]]
    types = SCHEMES[scheme]
    if (trained.reduce_range, trained.symmetric) != (types.reduce_range, types.symmetric):
        message = f"the network learned with the values of {known['scheme']}, and its file is in {scheme}: calibrated anew"
        return {}, [], (Note("warning", message),)
    found, in_float = scales_by_layer(source.main_file, known["layers"], types.activation)
    message = f"scales of {len(found)} tensors from the training, of {len(known['layers'])} layers"
    return found, in_float, (Note("decision", message),)


def _by_nncf(
    source: Artifact, workdir: Path, samples: int | None, context: RunContext
) -> tuple[Path, tuple[Note, ...]]:
    """A folder in OpenVINO's own format, made in a process of its own. Raises StageFailed where NNCF cannot."""
    from deploycompress.graph.arbiter.building import build_apart, save_feeds
    from deploycompress.graph.calibration import calibration_feeds
    from deploycompress.graph.compilers.recipe import Recipe

    with tempfile.TemporaryDirectory(dir=workdir, prefix=".nncf-") as folder:
        calibration = Path(folder) / "calibration"
        loader = context.data.loader("calibration")
        save_feeds(calibration_feeds(loader, source.main_file, samples), calibration)
        recipe = Recipe("openvino", "int8")
        built = build_apart(recipe, source.main_file, Path(folder) / "build", calibration, NNCF_TIMEOUT_S)
        move(built.path, workdir / "model")
        return workdir / "model", built.notes


def _reader(precision: str, scheme: str = "") -> Runtime:
    """What runs the file on this processor: ONNX Runtime has no kernels for BF16 there, and NNCF's is OpenVINO's."""
    other = precision == "bf16" or scheme == NNCF
    return RUNTIMES.load("openvino" if other else "onnxruntime")()  # type: ignore[no-any-return]


def _reading(context: RunContext, precision: str, scheme: str = "") -> dict[str, Any]:
    """The reader's options."""
    from deploycompress.graph.schemes import target_reading

    return {} if scheme == NNCF else target_reading(precision, context)


def _place(precision: str, context: RunContext) -> dict[str, Any]:
    """Where the file is to be run, where that is not the target's runtime."""
    if precision != "bf16" or context.target.provider != "cpu":
        return {}
    return {"runtime": "openvino", "provider": "cpu", "options": {"computes_in": "bf16"}}


def _validated(
    path: Path, context: RunContext, precision: str = "fp32", scheme: str = "", batch: int | None = None
) -> Evaluation:
    from deploycompress.graph.evaluation import evaluate_artifact
    from deploycompress.graph.execution import fixed_batch_of
    from deploycompress.graph.feeds import fixed_batch

    options = {"threads": context.target.threads, **_reading(context, precision, scheme)}
    loader, runtime = context.data.loader("val"), _reader(precision, scheme)
    file = path / "model.xml" if path.is_dir() else path
    batch = batch or fixed_batch_of(file) or fixed_batch(context.model)
    return evaluate_artifact(runtime, file, options, loader, context.task, batch)
