"""How a command prints what others may have named: as text for a terminal and for a CI system, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")


def say(text: str) -> None:
    """Print it, line breaks kept; what else would steer a terminal is shown as U+FFFD."""
    from deploycompress.report.figures import clean_lines

    click.echo(clean_lines(text))


def only_text(command: Callable[P, R]) -> Callable[P, R]:
    """GitHub's runner obeys nothing that the command prints; for those that write no annotations themselves."""

    @functools.wraps(command)
    def guarded(*given: P.args, **named: P.kwargs) -> R:
        from deploycompress.report.annotations import commands_stopped

        with commands_stopped(click.echo):
            return command(*given, **named)

    return guarded
