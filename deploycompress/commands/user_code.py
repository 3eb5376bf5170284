"""The option ``--no-user-code`` of the commands that import what a name says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def no_user_code(command: Command) -> Command:
    """Adds the option; a command sees nothing of it, for what it forbids is refused where names are loaded."""
    return click.option(
        "--no-user-code",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_refuse,
        help="Refuse code of one's own: only what is built in, torchvision:NAME and timm:NAME.",
    )(command)


def _refuse(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    from deploycompress.user_code import refuse_user_code

    if given:  # ``cli`` looks at the environment
        refuse_user_code()
