"""The RunContext of a step's process, and the lighter one that the main process asks with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploycompress.artifact import digest_json
from deploycompress.config import references
from deploycompress.config.devices import Devices
from deploycompress.config.files import every
from deploycompress.config.names import TABLES
from deploycompress.config.schema import Network, PipelineConfig
from deploycompress.contracts import Event, RunContext, targets_are_classes
from deploycompress.engine.store import FileStore

ARGUMENTS = "args"


def open_context(
    config: PipelineConfig,
    job: Mapping[str, Any],
    *,
    rehearsal: bool,
    emit: Callable[[Event], None],
    stopping: Callable[[], bool],
) -> RunContext:
    """Everything a stage may ask; imports torch, and all of the user's code that the configuration names."""
    from deploycompress.data.open import open_task
    from deploycompress.data.source import SourceData
    from deploycompress.model.source import SourceModel

    import_user_code(config)
    others = every(config.stages, Network)
    model = SourceModel(config.model, config.seed, [Path(p) for p in job["search_path"]], others)
    store = FileStore(Path(job["store"]), lambda text: emit(Event("warning", text)))
    task = open_task(config.task)
    classes = targets_are_classes(task)
    return RunContext(
        model=model,
        data=SourceData(
            config.data, model, config.seed, few=rehearsal, store=store, classes=classes, emit=emit
        ),
        task=task,
        target=config.target,
        gates=config.gates,
        store=store,
        seed=config.seed,
        rehearsal=rehearsal,
        emit=emit,
        stopping=stopping,
        step="" if rehearsal or "key" not in job else digest_json(job["key"]),
        devices=Devices(config.devices, job.get("controller", "")),
    )


def import_user_code(config: PipelineConfig) -> None:
    """Import every criterion, loss, network or other part that the stages name: its code is in the digests."""
    for step in config.stages:
        for key, name in _names(step.config.model_dump(mode="json")):
            if key in TABLES and ":" in name:
                TABLES[key].load(name)
    for network in every(config.stages, Network):
        if network.build.partition(":")[0] not in references.LIBRARIES:
            references.load(network.build, ())


def _names(document: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """What may be one, and under which key; the arguments of a network are nobody's but its own."""
    if isinstance(document, str):
        yield key, document
    elif isinstance(document, dict):
        for inner, value in document.items():
            yield key, inner  # {kd: {weight: 1}} under loss
            if inner != ARGUMENTS:
                yield from _names(value, inner)
    elif isinstance(document, list):
        for value in document:
            yield from _names(value, key)


def asking_context(config: PipelineConfig, store: FileStore) -> RunContext:
    """What ``Stage.requires`` may ask: no model, no data, no framework."""
    absent: Any = _Absent()
    return RunContext(
        model=absent,
        data=absent,
        task=absent,
        target=config.target,
        gates=config.gates,
        store=store,
        seed=config.seed,
        rehearsal=False,
        emit=lambda event: None,
        stopping=lambda: False,
        devices=Devices(config.devices),
    )


class _Absent:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(
            f"{name}: the model, the data and the task are not there when a stage is asked `requires`"
        )
