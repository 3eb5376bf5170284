"""``deploycompress compare``: what a change did to a pipeline's result; better, worse, or cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from deploycompress.commands.inputs import JsonFile
from deploycompress.commands.measuring import How, measuring_options
from deploycompress.commands.user_code import no_user_code

if TYPE_CHECKING:
    from deploycompress.commands.comparison import Comparison

REPORT = "report.json"


@click.command("compare")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("head", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True
)
@click.option("--output", type=JsonFile(), help="Write it to this file, instead of showing it.")
@click.option("--no-measure", is_flag=True, help="Of two runs: only what their reports say.")
@click.option(
    "--fail-on",
    type=click.Choice(["worse", "gate", "never"]),
    default="gate",
    show_default=True,
    help="What ends with an exit code: a gate of HEAD, that or a worse figure, or nothing.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N", help="Of artefacts whose batch is dynamic."
)
@measuring_options
@no_user_code
def command(
    base: Path,
    head: Path,
    form: Literal["text", "markdown", "json"],
    output: Path | None,
    no_measure: bool,
    fail_on: Literal["worse", "gate", "never"],
    batch_size: int | None,
    runtime: str | None,
    provider: str | None,
    threads: int | None,
    inputs: tuple[str, ...],
    device: str,
    devices: Path | None,
    mode: Literal["quick", "full"],
) -> None:
    """Compare two run directories, or two artefacts: BASE as it was, HEAD as it is.

    The best artefacts of two runs are measured anew, side by side, where both runs' machine is this one, or a device
    that --devices declares; figures of two machines are never compared. Accuracy is compared sample by sample where
    both runs judged the same ones. A figure is better or worse where its whole 95 % interval says so, for speed beyond
    twice what BASE differs from itself by, and 3 %.

    Exit code 0, or 5 where a gate of HEAD fails on the fresh figures (--fail-on worse: also where a figure is worse;
    artefacts have no gates), or 3 where no speed could be compared (not with --fail-on never).
    """
    from rich.console import Console

    from deploycompress.commands.comparing import compare_artefacts, compare_runs
    from deploycompress.commands.measuring import opened, reached
    from deploycompress.commands.random_inputs import wanted_inputs

    how, wanted = How(runtime, provider, threads), wanted_inputs(inputs)
    runs = [(path / REPORT).exists() for path in (base, head)]
    _require_alike(base, head, runs)
    if all(runs) and (how.given or batch_size is not None or device != "local"):
        raise click.UsageError(
            "--runtime, --provider, --threads, --batch-size and --device are for artefacts; runs are compared at their target"
        )
    if not all(runs) and no_measure:
        raise click.UsageError(
            "--no-measure is for two run directories; artefacts have no figures but measured ones"
        )
    # Seen on a terminal only; twice a second, since something is being measured beside it.
    with Console(stderr=True).status("reading", refresh_per_second=2) as status:

        def progress(done: float, message: str) -> None:
            status.update(f"{done:.0%} {message}")

        found = (
            compare_runs(
                base,
                head,
                wanted,
                mode,
                progress,
                measure=not no_measure,
                reach=lambda name: reached(name, devices),
            )
            if all(runs)
            else compare_artefacts(
                base, head, how, wanted, batch_size, mode, opened(device, devices), progress
            )
        )
    _show(found, form, output)
    _end(found, fail_on)


def _require_alike(base: Path, head: Path, runs: list[bool]) -> None:
    from deploycompress.errors import ConfigError

    for path, is_run in zip((base, head), runs, strict=True):
        if not is_run and (path / "config.yaml").is_file():
            raise ConfigError(
                f"{path} is no finished run: {path / REPORT} does not exist; run its pipeline to its end"
            )
    if runs[0] != runs[1]:
        run, other = (base, head) if runs[0] else (head, base)
        raise ConfigError(
            f"{run} is a run directory and {other} is none ({other / REPORT} does not exist); "
            "expected two directories of finished runs, or two artefacts"
        )


def _show(found: Comparison, form: str, output: Path | None) -> None:
    import json

    from deploycompress.artifact import write_text
    from deploycompress.commands.comparison_text import markdown, text
    from deploycompress.report.annotations import commands_stopped

    if form == "json":
        shown = json.dumps(found.to_json(), indent=2, allow_nan=False)
    else:
        shown = (markdown if form == "markdown" else text)(found).rstrip("\n")
    if output is not None:
        write_text(output, shown + "\n")
    elif form == "json":
        click.echo(shown.replace("##[", "#\\u0023["))  # the same text; a runner of GitHub's obeys the other
    else:
        with commands_stopped(click.echo):
            click.echo(shown)


def _end(found: Comparison, fail_on: str) -> None:
    """Raises what the comparison ends with."""
    from deploycompress.errors import EnvironmentMissing, GateFailed

    if fail_on == "never":
        return
    if found.blocked or (fail_on == "worse" and found.worse):
        raise GateFailed(found.headline)
    if not found.speed_compared:
        raise EnvironmentMissing(
            f"no speed could be compared: {found.notes[0] if found.notes else 'nothing was measured'}; "
            "compare the two artefacts, which are measured here, or run both pipelines on one machine"
        )
