"""The distill stage: a compressed network learns from the one it was made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from deploycompress.artifact import Artifact
from deploycompress.config.schema import Network
from deploycompress.contracts import Event, Inputs, Outcome, Ref, RunContext, Stage
from deploycompress.errors import ConfigError
from deploycompress.pruning.shaping import Regularization, SoftPrune, open_shaping
from deploycompress.recovery.recipe import Recipe, require_trackers
from deploycompress.recovery.teaching import Teaching

if TYPE_CHECKING:
    from torch import nn

    from deploycompress.recovery.mutual import MutualLearning
    from deploycompress.recovery.objectives import Distillation


class Distill(Stage):
    """Student: the source, or a network of its own. Teacher: the network before it was compressed, or another."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    version = 3
    libraries = ("torch", "accelerate", "numpy", "onnxruntime")
    incidental = {**Recipe.INCIDENTAL, "teacher_memory": True}

    class Config(Recipe, Teaching):
        regularization: Regularization | None = None
        soft_prune: SoftPrune | None = None
        mixup: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
            None, description="Alpha of the Beta distribution that the samples of both are blended by: 0.2"
        )
        quantized: Literal["auto", "u8s8", "s8s8", "u8s8_reduced", "s8s8_symmetric"] | None = Field(
            None,
            description="Learn with the values of INT8 in this scheme, whose scales quantize then takes over",
        )

        @model_validator(mode="after")
        def _blends_for_one_student(self) -> Self:
            if self.mixup is not None and self.joint:
                raise ValueError("mixup is for a teacher that only answers; leave out joint, or mixup")
            if self.mixup is not None and self.combine == "confidence":
                raise ValueError(
                    "combine: confidence goes by labels, and a blend of two samples has none; use mean"
                )
            return self

        @model_validator(mode="after")
        def _spread_by_one_process(self) -> Self:
            if self.teacher_memory is not None and self.launch is not None and self.launch.total > 1:
                raise ValueError(
                    "teacher_memory is for one process, as several would fill the same devices; leave out launch"
                )
            return self

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.compresses = config.student is not None  # then the baseline is the network before

    def inputs(self) -> Mapping[str, Ref]:
        """The source, what teaches, and files of weights; a network without a file is no input."""
        found = {"source": "last"}
        for place, teacher in self._teachers().items():
            if not isinstance(teacher, Network):
                found[place] = teacher
            elif teacher.weights is not None:
                found[place] = str(teacher.weights)
        student = self.config.student
        if student is not None and student.weights is not None:
            found["student"] = str(student.weights)
        return found

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        """Versions of the packages that the networks come from; a user's own code is in every key."""
        return {**self._packages(), **self._scheme(context)}

    def _scheme(self, context: RunContext) -> dict[str, str]:
        if self.config.quantized is None:
            return {}
        from deploycompress.graph.schemes import target_scheme

        return {"scheme": target_scheme(self.config.quantized, context)}

    def _packages(self) -> dict[str, Any]:
        modules = {network.build.rpartition(":")[0] for network in self.config.networks()}
        places = {module.partition(".")[0] for module in modules if not module.endswith(".py")}
        if not places:
            return {}
        installed = packages_distributions()
        return {place: [_version(name) for name in installed.get(place, [])] for place in sorted(places)}

    def requires(self, context: RunContext) -> None:
        require_trackers(self.config)

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.recovery.evaluation import validated
        from deploycompress.recovery.statistics import reestimate
        from deploycompress.recovery.training import device, fit

        config = self.config
        student = self._student(inputs, context)
        shaping = open_shaping(
            student, context.model, config.epochs, config.regularization, config.soft_prune
        )
        student.to(device())
        with TemporaryDirectory(prefix="teacher-", dir=workdir) as apart:
            distillation = self._objective(inputs, context, Path(apart))
            _try_first_batch(distillation, student, context)
            before = validated(student, context)
            reestimate(student, context, config.trainable)
            reestimated = validated(student, context)
            with self._rounded(student, context) as details:
                history = fit(student, distillation, config, context, shaping.after_epoch, shaping.penalty)
                reestimate(student, context, config.trainable)
                after = validated(student, context)
        folder = workdir / "model"
        checkpoint.save(student.to("cpu"), folder, context.model)
        return Outcome(
            (Artifact.of("", "checkpoint", folder, details=details),),
            {f"val_{name}": value for name, value in after.items()}
            | {f"val_{name}_before": value for name, value in before.items()}
            | _sparsity(student)
            | (_cost(student, context) if config.student is not None else {}),
            details={"epochs": history, "val_reestimated": reestimated},
        )

    @contextmanager
    def _rounded(self, student: nn.Module, context: RunContext) -> Iterator[dict[str, Any]]:
        """The values of INT8, where that is asked for; what the quantizer has to know of them, for the artefact."""
        if self.config.quantized is None:
            yield {}
            return
        from deploycompress.graph.schemes import SCHEMES
        from deploycompress.recovery.evaluation import device_of
        from deploycompress.recovery.fake_quantization import calibrated, fake_quantized

        scheme = self._scheme(context)["scheme"]
        types, where = SCHEMES[scheme], device_of(student)
        batches = (batch.to(where) for batch in context.data.loader("calibration"))
        scales = calibrated(student, context.model, batches, types.symmetric)
        context.emit(
            Event("decision", f"learns with the values of INT8, scheme {scheme}", {"layers": len(scales)})
        )
        told = {name: [scale.scale, scale.zero_point] for name, scale in scales.items()}
        with fake_quantized(student, scales, 63 if types.reduce_range else 127):
            yield {"input_scales": {"scheme": scheme, "layers": told}}

    def _student(self, inputs: Inputs, context: RunContext) -> nn.Module:
        if self.config.student is None:
            return _loaded(inputs["source"][0].path, context)
        student = _built(self.config.student, "distill.student", context)
        if self.config.inherit:
            from deploycompress.recovery.inheriting import inherit

            taken, total = inherit(student, _loaded(inputs["source"][0].path, context))
            context.emit(
                Event("decision", f"the student starts with {taken} of its {total} tensors from its source")
            )
        return student

    def _objective(self, inputs: Inputs, context: RunContext, apart: Path) -> Distillation | MutualLearning:
        """``apart``: a folder for the layers of teachers that fit no device."""
        from deploycompress.recovery.mutual import MutualLearning
        from deploycompress.recovery.objectives import Distillation
        from deploycompress.recovery.teachers import open_teacher

        config = self.config
        made: list[nn.Module | Path] = []
        for place, teacher in self._teachers().items():
            if isinstance(teacher, Network):
                network = _built(teacher, "distill.teacher", context)
            elif inputs[place][0].kind == "checkpoint":
                network = _loaded(inputs[place][0].path, context)
            else:
                made.append(inputs[place][0].path)
                continue
            made.append(self._placed(network, apart / place, context))
        final = config.anneal.alpha if config.anneal is not None else None
        loss = config.open_loss()
        if config.joint and not isinstance(made[0], Path):
            return MutualLearning(context.model, context.task, made[0], loss, config.alpha, final)
        opened = open_teacher(context.model, made, config.combine)
        return Distillation(context.model, context.task, opened, loss, config.alpha, final, config.mixup)

    def _placed(self, teacher: nn.Module, folder: Path, context: RunContext) -> nn.Module:
        """On the device that trains, or spread over as much memory as the configuration gives it."""
        from deploycompress.recovery.sharding import shard
        from deploycompress.recovery.training import device

        memory = self.config.teacher_memory
        if memory is None:
            return teacher.to(device())
        limits = None if memory == "auto" else {name: size.value for name, size in memory.items()}
        found = shard(teacher, limits, folder)
        where = ", ".join(f"{count / 1e6:.3g} MB on {at}" for at, count in found.items())
        context.emit(Event("decision", f"the teacher is spread: {where}"))
        return teacher

    def _teachers(self) -> dict[str, str | Network]:
        """Every teacher by the name of its input: ``teacher``, or ``teacher.0`` and so on."""
        teachers = self.config.teachers()
        if len(teachers) == 1:
            return {"teacher": teachers[0]}
        return {f"teacher.{number}": teacher for number, teacher in enumerate(teachers)}


def _built(network: Network, place: str, context: RunContext) -> nn.Module:
    """A network of the configuration with its weights."""
    return _with_weights(context.model.other(network).build, network.weights, place)


def _loaded(path: Path, context: RunContext) -> nn.Module:
    """The network of a step, or the pipeline's own with the weights in a file."""
    from deploycompress.model import checkpoint

    if path.is_file():
        return _with_weights(context.model.build, path, "distill.teacher")
    return checkpoint.load(path, context.model)


def _with_weights(build: Callable[[], nn.Module], weights: Path | None, place: str) -> nn.Module:
    """Raises ConfigError that speaks of the network at ``place`` of the configuration."""
    from deploycompress.model.source import load_weights

    try:
        module = build()
        if weights is not None:
            load_weights(module, weights)
    except ConfigError as error:
        said = re.sub(r"\bmodel\.(build|args|weights)\b", rf"{place}.\1", str(error))
        raise ConfigError(said) from error
    return module


def _version(distribution: str) -> str:
    return f"{distribution}=={version(distribution)}"


def _try_first_batch(
    distillation: Distillation | MutualLearning, student: nn.Module, context: RunContext
) -> None:
    """What cannot work is refused here, before the first epoch. Raises ConfigError."""
    from deploycompress.model.source import seeded
    from deploycompress.recovery.training import device

    batch = next(iter(context.data.loader("train", epoch=0)), None)
    if batch is None:
        raise ConfigError("data: the train split is empty; look at data.source and data.root")
    with seeded(context.seed):  # adapters start the same every time
        distillation.prepare(student, batch.to(device()))
    pairs = getattr(distillation, "pairs", ())
    if pairs:
        told = ", ".join(
            p.student if p.student == p.teacher else f"{p.student} from {p.teacher}" for p in pairs
        )
        context.emit(Event("decision", f"features are learned at {told}"))


def _cost(student: nn.Module, context: RunContext) -> dict[str, float]:
    """Parameters and multiplications of a network that was not there before."""
    from deploycompress.pruning.costs import count

    cost = count(student, context.model)
    return {name: cost[name] for name in ("params", "macs")}


def _sparsity(student: nn.Module) -> dict[str, float]:
    """Of the weights that were made sparse before: training has kept their zeros."""
    from deploycompress.model.sparse import share_of_zeros, sparse_weights

    names = sparse_weights(student)
    return {"sparsity": share_of_zeros(map(student.get_parameter, names))} if names else {}
