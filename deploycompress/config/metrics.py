"""Names of metrics in the configuration, held against those that the task gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploycompress.config.document import Document, KeyPath
from deploycompress.config.gates import METRIC
from deploycompress.config.schema import ModelConfig, StepConfig
from deploycompress.config.wording import listed, unknown

WORST_CLASS = "worst_class"


def check_expected(document: Document, model: ModelConfig, task: Any) -> None:
    """``model.expect``: there are weights to expect it of, and the task, where it is known, has the metrics."""
    path: KeyPath = ("model", "expect")
    if model.expect and model.weights is None:
        document.report(
            path, "no weights are given to expect this of; give model.weights, or leave it out", key=True
        )
    if model.tolerance is not None and not model.expect:
        document.report(
            ("model", "tolerance"), "there is no model.expect that it is a tolerance of", key=True
        )
    if task is None:
        return
    known = of_task(task)
    for name, level in model.expect.items():
        if name not in known:
            document.report((*path, name), unknown(f"metric of {_kind(task)}", name, known), key=True)
        elif known[name].unit == "share" and level.dimension == "number" and level.value > 1:
            message = f"received {level}: a plain number is a share from 0 to 1 here; write {level}%"
            document.report((*path, name), message)


def check_gates(
    document: Document, gates: Mapping[str, Any], task: Any, steps: Sequence[StepConfig | None]
) -> None:
    """Every gate on a metric is on one that the task, or a corruption of the benchmark, gives, and limits the way in
    which that gets worse.
    """
    known = of_task(task)
    primary = task.primary.name
    configured = {kind for step in steps if step for kind in getattr(step.config, "corruptions", ())}
    corrupted = [f"{primary}_{kind}" for kind in sorted(configured)]
    for gate in gates:
        name = gate.removeprefix(METRIC)
        path: KeyPath = ("gates", gate)
        _check_direction(document, path, gates[gate], _info(name, known, task.primary, corrupted))
        if gate == WORST_CLASS and WORST_CLASS not in known:
            message = f"{_kind(task)} has no classes to guard; its metrics are {listed(known)}"
            document.report(path, message, key=True)
        if not gate.startswith(METRIC) or name in known or name in corrupted:
            continue
        figure, _, last = name.rpartition(".")
        if figure and last.isdigit():
            continue  # a class's figure, recall.3; which classes there are the data say
        message = unknown(f"metric of {_kind(task)}", name, [*known, *corrupted])
        if name.startswith(f"{primary}_"):
            message += f"; for one under a corruption, name that in the benchmark's corruptions: [{name[len(primary) + 1 :]}]"
        document.report(path, message, key=True)


def _info(name: str, known: Mapping[str, Any], primary: Any, corrupted: Sequence[str]) -> Any:
    """The MetricInfo of what a gate is on, None where that is not known; ``recall.3`` is a class's recall."""
    if name == "accuracy" or name in corrupted:
        return primary
    return known.get(name, known.get(name.rpartition(".")[0]))


def _check_direction(document: Document, path: KeyPath, gate: Any, info: Any) -> None:
    if info is None:
        return
    wrong, right, better = (
        ("max_rise", "max_drop", "higher") if info.higher_is_better else ("max_drop", "max_rise", "lower")
    )
    if getattr(gate, wrong, None) is not None:
        message = (
            f"{info.name} is better the {better} it is, so that it gets worse by a {right[4:]}; write {right}"
        )
        document.report((*path, wrong), message, key=True)


def of_task(task: Any) -> dict[str, Any]:
    """What is known of a built-in task's metrics: name -> MetricInfo."""
    return {**getattr(task, "figures", {}), task.primary.name: task.primary}


def _kind(task: Any) -> str:
    return str(type(task).__module__.rpartition(".")[2])
