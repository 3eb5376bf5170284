"""``deploycompress run``: take a pipeline through its steps, gates and report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from deploycompress.commands.user_code import no_user_code


@click.command("run")
@click.argument("pipeline", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key: --set prune.target.macs=30%.",
)
@click.option(
    "--devices",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the devices are declared (default: devices.yaml beside the pipeline).",
)
@click.option("--out", type=click.Path(path_type=Path), help="The run directory (default: runs/<name>).")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Where finished steps are kept (default: DEPLOYCOMPRESS_STORE, else the user's cache).",
)
@no_user_code
@click.option("--no-rehearsal", is_flag=True, help="Skip the run of the whole chain with untrained weights.")
@click.option("-v", "--verbose", is_flag=True, help="Every event, with all its figures.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings, the verdict and the gates.")
def command(
    pipeline: Path,
    overrides: tuple[str, ...],
    devices: Path | None,
    out: Path | None,
    store: Path | None,
    no_rehearsal: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Take PIPELINE (a pipeline.yaml) through its steps, gates and report."""
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet contradict each other; give one of them")
    from deploycompress.commands.progress import open_view
    from deploycompress.engine.pipeline import run
    from deploycompress.report.annotations import commands_stopped, of_report
    from deploycompress.report.render import terminal_summary

    places = _gate_places(pipeline)
    with commands_stopped(click.echo):
        with open_view(verbose=verbose, quiet=quiet, terminal=sys.stdout.isatty()) as view:
            report = run(
                pipeline,
                view,
                overrides=overrides,
                devices=devices,
                out=out,
                store=store.absolute() if store else None,
                rehearsal=not no_rehearsal,
                command=["deploycompress", *sys.argv[1:]] if sys.argv[1:2] == ["run"] else [],
            )
        run_dir = out or Path("runs") / str(report["name"])
        click.echo(terminal_summary(report))
        click.echo(f"report: {run_dir / 'report.html'}")
        if report["ships"]:
            click.echo(f"artefacts: {run_dir / 'artifacts'}")
    if report["verdict"] == "error":
        click.echo(
            f"to go on after the cause is mended: deploycompress run {shlex.quote(str(pipeline))}", err=True
        )
    if places is not None:
        for line in of_report(report, places):
            click.echo(line)
    return int(report["exit_code"])


def _gate_places(pipeline: Path) -> dict[str, str] | None:
    """Where each gate stands in the file as it is before the run; None where no annotation is wanted."""
    from deploycompress.config import yaml_file
    from deploycompress.report.annotations import on_github

    if not on_github():
        return None
    document = yaml_file.load(pipeline)
    gates = document.data.get("gates") if isinstance(document.data, dict) else None
    return {name: document.place(("gates", name)).key for name in gates} if isinstance(gates, dict) else {}
