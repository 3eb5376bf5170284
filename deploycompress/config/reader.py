"""pipeline.yaml -> PipelineConfig, with all its mistakes at once; and back to YAML."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.config import (
    device_file,
    metrics,
    names,
    order,
    overrides,
    references,
    steps,
    teachers,
    user_code,
    yaml_file,
    yaml_text,
)
from deploycompress.config.devices import LOCAL, DeviceConfig
from deploycompress.config.document import Document, KeyPath, in_order
from deploycompress.config.files import found, not_found, search_path, with_paths
from deploycompress.config.gates import read_gates
from deploycompress.config.schema import (
    DataConfig,
    ModelConfig,
    OpenConfig,
    OpenDataConfig,
    PipelineConfig,
    StepConfig,
    StepOptions,
    TargetConfig,
    TaskConfig,
)
from deploycompress.config.validation import M, mistakes, validate
from deploycompress.config.wording import listed, shown, unknown
from deploycompress.errors import ConfigError, Problem
from deploycompress.registry import DATASETS, DEVICES, STAGES, TASKS, Table

__all__ = ["dump", "read", "search_path"]

WEIGHTS = (".safetensors", ".pt", ".pth", ".th")


def read(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    devices: Path | None = None,
    load_user_code: bool = False,
) -> PipelineConfig:
    """The configuration in the file at ``path``: complete, expanded, with absolute paths.

    ``overrides``: ``--set`` values. ``devices``: the file of devices, where it is not devices.yaml beside ``path``.
    ``load_user_code``: import the user's stages and data sources, so that their configuration is checked too;
    otherwise they are only located.
    Raises ConfigError with every mistake, each with its place.
    """
    document, place = yaml_file.load(path), devices or device_file.beside(path)
    declared, problems = ({}, []) if place is None else device_file.read_devices(place)
    return _Reader(document, search_path(path), load_user_code, declared, problems).read(overrides)


def dump(config: PipelineConfig) -> str:
    """YAML text that ``read`` reads back to an equal configuration."""
    document = config.model_dump(mode="json", by_alias=True)
    document["stages"] = [_dump_step(step) for step in document["stages"]]
    return yaml_text.to_yaml(document)


def _dump_step(step: dict[str, Any]) -> dict[str, Any]:
    options = {key: step["source" if key == "from" else key] for key in steps.OPTIONS}
    return {step["stage"]: {k: v for k, v in options.items() if v is not None} | step["config"]}


@dataclass
class _Reader:
    document: Document
    folders: tuple[Path, ...]
    load_user_code: bool
    devices: Mapping[str, DeviceConfig | None]
    device_problems: Sequence[Problem]

    def read(self, texts: Sequence[str]) -> PipelineConfig:
        if not isinstance(self.document.data, dict):
            self.document.report(
                (), f"received {shown(self.document.data)}, expected keys such as name: and model:"
            )
            raise ConfigError(self.document.problems)
        self.override(texts)
        user_code.check(self.document)
        self.top_level()
        model, data, target = self.model(), self.data(), self.block(TargetConfig, "target")
        task, stages = self.task(), self.stages()
        made = self.built_in(task)
        gates = read_gates(self.document, share=made is not None and made.primary.unit == "share")
        order.check(self.document, stages, model, gates, target)
        if model is not None:
            metrics.check_expected(self.document, model, made)
        if made is not None:
            metrics.check_gates(self.document, gates, made, stages)
        if self.document.problems or self.device_problems:
            raise ConfigError([*in_order(self.document.problems), *in_order(self.device_problems)])
        head = {k: self.document.data[k] for k in ("name", "seed") if k in self.document.data}
        blocks = {"model": model, "data": data, "target": target, "task": task, "gates": gates}
        given = {key: block for key, block in blocks.items() if block is not None}
        return PipelineConfig.model_validate(
            head | given | {"stages": tuple(s for s in stages if s), "devices": self.devices}
        )

    def override(self, texts: Sequence[str]) -> None:
        """Apply ``--set``, before and after ``repeat`` is written out."""
        parsed = []
        for text in texts:
            try:
                parsed.append(overrides.parse_override(text))
            except ConfigError as error:
                self.document.problems += error.problems
        rounds = overrides.apply(self.document, parsed)
        if isinstance(self.document.data.get("stages"), list):
            steps.expand(self.document)
            overrides.apply_to_rounds(self.document, rounds)

    @property
    def known_devices(self) -> Table:
        """The names that a device may have: of ``local``, and of those that are declared."""
        return Table("device", {LOCAL: DEVICES[LOCAL], **{name: "" for name in self.devices}})

    # ------------------------------------------------------------ blocks

    def top_level(self) -> None:
        """Unknown and missing keys, the name and the seed; the other blocks have methods of their own."""
        if "devices" in self.document.data:
            self.document.report(
                ("devices",),
                "devices stand in a devices.yaml beside this file, or behind --devices",
                key=True,
            )
        for mistake in mistakes(PipelineConfig, self.document.data):
            key = mistake.path[0] if mistake.path else ""
            if key in ("name", "seed") or (len(mistake.path) == 1 and mistake.key):
                self.document.report(mistake.path, mistake.message, key=mistake.key)

    def block(self, model: type[M], key: str) -> M | None:
        """A block with a model of its own; None when it is not there, or wrong."""
        if key not in self.document.data:
            return None
        names.check_keys(self.document, (key,), self.folders, self.known_devices)
        block = validate(model, self.document, (key,))
        return None if block is None else self.with_files(block, (key,))

    def model(self) -> ModelConfig | None:
        model = self.block(ModelConfig, "model")
        raw = self.document.data.get("model")
        build = raw.get("build") if isinstance(raw, dict) else None
        if isinstance(build, str):
            reason = references.locate(build, self.folders)
            if reason is not None:
                self.document.report(("model", "build"), f"{build!r}: {reason}")
        if model is None:
            return None
        if model.weights is not None and (model.weights.suffix not in WEIGHTS or model.weights.is_dir()):
            message = f"received {shown(str(model.weights))}, expected a file ending in {listed(WEIGHTS, last='or')}"
            self.document.report(("model", "weights"), message)
        return model.model_copy(update={"build": references.absolute(model.build, self.folders)})

    def data(self) -> DataConfig | None:
        raw = self.document.data.get("data")
        if isinstance(raw, dict) and "source" not in raw:  # so its other keys are not known either
            known = listed([*DATASETS, "module:function"], last="or")
            self.document.report(("data",), f"the key 'source' is missing; expected {known}", key=True)
            return None
        if not isinstance(raw, dict) or not isinstance(raw["source"], str):
            return self.block(DataConfig, "data")
        if raw["source"].startswith("torchvision:"):  # torchvision:CIFAR10, as for models
            raw["source"], raw["dataset"] = raw["source"].split(":", 1)
        name = names.check_name(DATASETS, self.document, ("data", "source"), self.folders)
        if name is None:
            return None  # which keys it takes is not known
        raw["source"] = name
        return self.block(self.data_model(name), "data")

    def data_model(self, name: str) -> type[DataConfig]:
        """The configuration that the data source ``name`` takes."""
        if name not in DATASETS and not self.load_user_code:
            function = references.find(name, self.folders).kind == "function"
            return DataConfig if function else OpenDataConfig
        source = self.loaded(DATASETS, name, ("data", "source"))
        own = getattr(source, "Config", None)
        return own if isinstance(own, type) and issubclass(own, DataConfig) else DataConfig

    def task(self) -> TaskConfig | None:
        if isinstance(self.document.data.get("task"), str):
            self.document.data["task"] = {"name": self.document.data["task"]}
        raw = self.document.data.get("task")
        if isinstance(raw, dict) and isinstance(raw.get("name"), str):
            raw["name"] = (
                names.check_name(TASKS, self.document, ("task", "name"), self.folders) or raw["name"]
            )
        return self.block(TaskConfig, "task")

    def built_in(self, task: TaskConfig | None) -> Any:
        """A built-in task, its arguments checked; None for one with mistakes, and for a user's, which is not imported."""
        task = task or TaskConfig()
        if task.name not in TASKS:
            return None
        make = TASKS.load(task.name)
        known = inspect.signature(make).parameters
        for name in task.args.keys() - known.keys():
            self.document.report(("task", "args", name), unknown("argument", name, known), key=True)
        try:
            return make(**{k: v for k, v in task.args.items() if k in known})
        except (TypeError, ValueError) as error:
            self.document.report(("task", "args"), f"{task.name}: {error}")
            return None

    # ------------------------------------------------------------ stages

    def stages(self) -> list[StepConfig | None]:
        """The steps; None in place of one with mistakes."""
        raw = self.document.data.get("stages")
        if not isinstance(raw, list):
            if "stages" in self.document.data:
                self.document.report(("stages",), f"received {shown(raw)}, expected a list of stages")
            return []
        if not raw and not self.document.problems:
            self.document.report(
                ("stages",), "no stage is given; expected a list such as [train, prune, export]"
            )
        return [self.step(("stages", index), step) for index, step in enumerate(raw)]

    def step(self, path: KeyPath, raw: dict[str, Any]) -> StepConfig | None:
        options = validate(StepOptions, self.document, (*path, "options"))
        problem = names.wrong_name(STAGES, raw["stage"], self.folders)
        if problem is not None:
            self.document.report(path, problem, key=True)
            return None
        stage = references.absolute(raw["stage"], self.folders)
        names.check_keys(self.document, (*path, "config"), self.folders, self.known_devices)
        block = self.document.value((*path, "config"))
        if teachers.KEY in block:
            block[teachers.KEY] = teachers.with_files(block[teachers.KEY], self.source_file)
        config = validate(self.stage_model(stage, path), self.document, (*path, "config"), also=steps.OPTIONS)
        if options is None or config is None:
            return None
        return StepConfig(
            stage=stage,
            id=raw["id"],
            source=self.source_file(options.source),
            timeout=options.timeout,
            back_off=options.back_off,
            config=teachers.with_builds(
                self.with_files(config, (*path, "config")), self.document, (*path, "config"), self.folders
            ),
        )

    def stage_model(self, stage: str, path: KeyPath) -> Any:
        if stage not in STAGES and not self.load_user_code:
            return OpenConfig
        return getattr(self.loaded(STAGES, stage, path), "Config", OpenConfig)

    def source_file(self, source: str | None) -> str | None:
        """``from`` is a step's id, or a file: then its absolute path."""
        if source is None or source in (step["id"] for step in self.document.data["stages"]):
            return source
        file = found(Path(source), self.folders) if source not in steps.RESERVED else None
        return source if file is None else str(file)

    # ------------------------------------------------------------ files and user code

    def with_files(self, model: M, path: KeyPath) -> M:
        """``model`` with absolute paths; a file that does not exist is a mistake."""

        def absolute(key: KeyPath, file: Path) -> Path:
            place = found(file, self.folders)
            if place is None:
                self.document.report((*path, *key), not_found(file, self.folders))
            return place or file

        return with_paths(model, absolute)

    def loaded(self, table: Any, name: str, path: KeyPath) -> Any:
        try:
            return names.load(table, name, self.folders)
        except ConfigError as error:
            self.document.problems += [
                Problem(problem.message, self.document.place(path).value, self.document.place(path).written)
                for problem in error.problems
            ]
            return None
