"""What commands on a model take: BUILD, ``--input`` and the file of ``--json``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from deploycompress.config.schema import InputSpec

Command = TypeVar("Command", bound=Callable[..., Any])

INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<shape>\d+(x\d+)*)(:(?P<dtype>\w+)(:(?P<max>\d+))?)?")


class JsonFile(click.ParamType):  # type: ignore[type-arg]  # no older click knows the argument
    """A file to be written, in a folder that is there."""

    name = "file"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if str(value) == "-":
            self.fail("received '-'; expected the name of a file", param, ctx)
        if not path.absolute().parent.is_dir():
            self.fail(f"there is no folder {path.parent} to write {path.name} into", param, ctx)
        if path.is_dir():
            self.fail(f"{path} is a folder; expected the name of a file", param, ctx)
        return path


def model_arguments(command: Command) -> Command:
    """The argument BUILD and the option ``--input`` of a command, as ``build`` and ``inputs``."""
    help = (
        "image=1x3x224x224, or input_ids=1x128:int64:30521. "
        "The first dimension is the batch, measured at that size."
    )
    metavar = "NAME=SHAPE[:DTYPE[:MAX]]"
    option = click.option("--input", "inputs", multiple=True, required=True, metavar=metavar, help=help)
    return click.argument("build")(option(command))


def matched(text: str) -> re.Match[str]:
    """The parts of one ``NAME=SHAPE[:DTYPE[:MAX]]``. Raises click.BadParameter."""
    match = INPUT.fullmatch(text)
    if match is None:
        raise click.BadParameter(
            f"received {text!r}; expected NAME=SHAPE[:DTYPE[:MAX]], as image=1x3x224x224 or ids=1x128:int64:30521",
            param_hint="--input",
        )
    return match


def input_specs(inputs: tuple[str, ...]) -> tuple[dict[str, InputSpec], int]:
    """The inputs with a dynamic batch, and the batch size that was given. Raises click.BadParameter."""
    from pydantic import ValidationError

    from deploycompress.config.schema import InputSpec

    specs: dict[str, InputSpec] = {}
    batches: dict[str, int] = {}
    for text in inputs:
        match = matched(text)
        name, sizes = match["name"], [int(size) for size in match["shape"].split("x")]
        if name in specs:
            raise click.BadParameter(f"input {name!r} is given twice", param_hint="--input")
        batches[name] = sizes[0]
        try:
            specs[name] = InputSpec.model_validate(
                {"shape": ["batch", *sizes[1:]], "dtype": match["dtype"] or "float32"}
                | ({"max": int(match["max"])} if match["max"] else {})
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise click.BadParameter(f"{text!r}: {place}: {first['msg']}", param_hint="--input") from error
    if len(set(batches.values())) > 1 or 0 in batches.values():
        received = ", ".join(f"{name} {size}" for name, size in batches.items())
        raise click.BadParameter(
            f"the first dimension is the batch and must be one positive number for all inputs; received {received}",
            param_hint="--input",
        )
    return specs, next(iter(batches.values()))
