"""The command line, and the one place where an error becomes an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from deploycompress import __version__
from deploycompress.errors import ConfigError, DeployCompressError, of_system
from deploycompress.user_code import refuse_user_code, user_code_is_refused

# Name -> (module with the click command ``command``, one line for --help), so that --help imports none of them.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Take a pipeline.yaml through its steps, gates and report."),
    "sweep": ("sweep", "Run a pipeline with many values; the Pareto front, and the best one."),
    "validate": ("validate", "Check a pipeline.yaml; all mistakes at once, with their places."),
    "init": ("init", "Write a commented pipeline.yaml that runs."),
    "probe": ("probe", "Take any model through prune, export, quantize and benchmark in one line."),
    "inspect": ("inspect", "Where a model's MACs, parameters and time go, and what could be pruned."),
    "benchmark": ("benchmark", "Measure ONNX files and engines side by side, whoever made them."),
    "compare": ("compare", "Two runs, or two artefacts: better, worse, or cannot tell."),
    "report": ("report", "Render the report of a run directory again."),
    "sign": ("sign", "Sign every file of a run directory, offline, with a key of yours."),
    "verify": ("verify", "Is a run directory as it was signed? Which files are not."),
    "cache": ("cache", "The store of finished steps: check it, tidy it, say why a step was made again."),
    "doctor": ("doctor", "What is installed here, which runtimes can run, and what to do about the rest."),
    "schema": ("schema", "Print the JSON Schema of pipeline.yaml for an editor."),
}
ANNOTATED = ("run", "validate", "sweep")  # on GitHub: their mistakes are in a file of the change


class _Commands(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(
            f"deploycompress.commands.{COMMANDS[name][0]}"
        ).command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        name = arguments[0]
        near = difflib.get_close_matches(name, COMMANDS, 1)
        if name not in COMMANDS and near:
            context.fail(f"no command {name!r}; did you mean {near[0]!r}?")
        return super().resolve_command(context, arguments)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all gates passed, 2 configuration, 3 environment, 4 a step failed, 5 a gate failed, "
    "130/143 interrupted (the next run goes on).",
)
@click.version_option(__version__, prog_name="deploycompress")
def group() -> None:
    """From a trained PyTorch model to the fastest artefact that still meets its measured budget."""
    if user_code_is_refused():  # by the environment: whatever the command, and before it imports anything
        refuse_user_code()


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line and exit with the code of DESIGN: one per class of error."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        code = group.main(args=arguments, prog_name="deploycompress", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except DeployCompressError as error:
        _show(error, annotated=_named(arguments) in ANNOTATED)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as problem:
        refused = of_system(problem)
        if refused is None:
            raise
        _show(refused, annotated=False)
        sys.exit(refused.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM where nobody else looks at it: what is open is closed, as after Ctrl-C."""
    sys.exit(128 + number)


def _named(arguments: Sequence[str] | None) -> str:
    """The command that was asked for; the group has no option that takes a value."""
    given = sys.argv[1:] if arguments is None else arguments
    return next((word for word in given if not word.startswith("-")), "")


def _show(error: DeployCompressError, annotated: bool) -> None:
    from deploycompress.report.annotations import defused, of_mistakes, on_github
    from deploycompress.report.figures import clean_lines

    problems = error.problems if isinstance(error, ConfigError) else ()
    for message in problems or (error,):
        click.echo(defused(f"error: {clean_lines(str(message))}"), err=True)
    if len(problems) > 1:
        click.echo(f"{len(problems)} mistakes", err=True)
    if annotated and on_github():
        for line in of_mistakes(problems):
            click.echo(line)
