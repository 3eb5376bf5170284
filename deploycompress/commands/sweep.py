"""``deploycompress sweep``: many pipelines of one kind, and which of them is the best."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from deploycompress.commands.output import only_text, say
from deploycompress.commands.user_code import no_user_code


@click.command("sweep")
@click.argument("file", type=click.Path(path_type=Path), metavar="SWEEP")
@click.option(
    "--workers",
    type=click.IntRange(1, 1000),
    help="Trials at a time on this machine (default: 1), or at most on the Ray cluster (default: as many as it takes).",
)
@click.option("--ray", metavar="ADDRESS", help="Run the trials on this Ray cluster: auto, or host:6379.")
@click.option(
    "--devices",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the devices are declared (default: devices.yaml beside the base pipeline).",
)
@click.option("--out", type=click.Path(path_type=Path), help="The sweep's folder (default: runs/<name>).")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Where finished steps are kept (default: DEPLOYCOMPRESS_STORE, else the user's cache).",
)
@click.option("-q", "--quiet", is_flag=True, help="Only the result.")
@no_user_code
@only_text
def command(
    file: Path,
    workers: int | None,
    ray: str | None,
    devices: Path | None,
    out: Path | None,
    store: Path | None,
    quiet: bool,
) -> int:
    """Run what SWEEP (a sweep.yaml) says: its base pipeline again and again, with other values."""
    from deploycompress.sweep.page import terminal
    from deploycompress.sweep.running import sweep

    report = sweep(
        file,
        (lambda line: None) if quiet else say,
        workers=workers,
        ray=ray,
        devices=devices,
        out=out,
        store=store.absolute() if store else None,
        command=shlex.join(["deploycompress", *sys.argv[1:]]) if sys.argv[1:2] == ["sweep"] else "",
    )
    say(terminal(report))
    shown = out or Path("runs") / str(report["name"])
    if report["best"] is not None:
        say(f"pipeline: {shown / 'pipeline.yaml'}")
    say(f"report: {shown / 'report.html'}")
    return int(report["exit_code"])
