"""The pipeline's task by name."""

from __future__ import annotations

import inspect

from deploycompress.config.schema import TaskConfig
from deploycompress.contracts import Task
from deploycompress.errors import ConfigError
from deploycompress.registry import TASKS

OFFERS = ("primary", "check", "loss", "metrics")


def open_task(config: TaskConfig) -> Task:
    """The task, built-in or ``module:Name``, made with its arguments. Raises ConfigError."""
    make = TASKS.load(config.name)
    if not callable(make):
        raise ConfigError(f"task {config.name} is a {type(make).__name__}; expected a class or a function")
    try:
        task: Task = make(**config.args)
    except (TypeError, ValueError) as error:
        accepted = ", ".join(inspect.signature(make).parameters) or "none"
        raise ConfigError(
            f"task {config.name}: received {config.args or 'no arguments'}: {error}; its arguments are: {accepted}"
        ) from error
    if absent := [name for name in OFFERS if not hasattr(task, name)]:
        raise ConfigError(
            f"task {config.name} gave a {type(task).__name__} without {', '.join(absent)}; expected a task with "
            f"{', '.join(OFFERS)}"
        )
    return task
