"""What ``benchmark`` and ``compare`` take to measure files: runtime, threads, batch sizes, inputs, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from deploycompress.commands.given import Given
    from deploycompress.devices.jobs import Candidate
    from deploycompress.report.document import Row

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class How:
    """The options; None where an artefact's manifest, or else the default, decides."""

    runtime: str | None = None
    provider: str | None = None
    threads: int | None = None

    @property
    def given(self) -> bool:
        return (self.runtime, self.provider, self.threads) != (None, None, None)


def measuring_options(command: Command) -> Command:
    """``--runtime --provider --threads --input --device --mode`` of a command."""
    options = (
        click.option(
            "--runtime", help="What opens the files (default: what they were made for, else onnxruntime)."
        ),
        click.option(
            "--provider",
            help="Of the runtime, such as cpu or cuda (default: what they were made for, else cpu).",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="(default: what they were made for, else 1)",
        ),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="NAME=SHAPE[:DTYPE[:MAX]]",
            help="Sizes of an input whose dimensions are dynamic, and what its integers are below: "
            "image=1x3x224x224, input_ids=1x128:int64:30521. Repeatable.",
        ),
        click.option("--device", default="local", show_default=True, help="Where it is measured."),
        click.option(
            "--mode",
            type=click.Choice(["quick", "full"]),
            default="quick",
            show_default=True,
            help="2.2 s or a minute of each artefact.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def candidate_of(given: Given, how: How) -> Candidate:
    """The artefact in the runtime that was asked for, else the one it was made for.

    Raises ConfigError where there is no such runtime or it does not open the file, EnvironmentMissing where it cannot
    run here.
    """
    from deploycompress.devices.jobs import Candidate
    from deploycompress.errors import ConfigError, EnvironmentMissing
    from deploycompress.registry import RUNTIMES

    made_for = given.made_for
    own = str(made_for.get("runtime") or ("openvino" if given.artifact.kind == "openvino" else "onnxruntime"))
    name = how.runtime or own
    runtime = RUNTIMES.load(name)()
    if given.artifact.kind not in runtime.accepts or (given.artifact.kind == "engine" and name != own):
        made = f"was made for {own}" if made_for.get("runtime") else f"is of kind {given.artifact.kind}"
        raise ConfigError(f"{given.name} {made}; the runtime {name} does not open it")
    missing = runtime.missing()
    if missing:
        raise EnvironmentMissing(f"the runtime {name} cannot run here: {missing}")
    mine = made_for if name == own else {}
    provider = how.provider or str(mine.get("provider") or "cpu")
    threads = how.threads or int(mine.get("threads") or 1)
    options = mine.get("options") or {}
    path, precision = given.artifact.path, given.artifact.precision
    return Candidate(given.name, path, name, provider, threads, precision, options)


def how_of(row: Row) -> How:
    """As a run measured it. Raises ConfigError for a runtime of the user's: a report names no code to be run."""
    from deploycompress.errors import ConfigError
    from deploycompress.registry import RUNTIMES

    if row.runtime not in list(RUNTIMES):
        raise ConfigError(
            f"{row.artifact} was measured in the runtime {row.runtime}, which is not built in; compare the two artefacts "
            "with --runtime, or the reports with --no-measure"
        )
    return How(row.runtime, row.provider or None, row.threads)
