"""``deploycompress report``: write what is rendered from a run's report.json again."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report", short_help="Render a run's report again from its report.json.")
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
def command(run_dir: Path) -> None:
    """Write report.html, summary.md, junit.xml and the benchmark files of RUN_DIR again; print the summary."""
    from deploycompress.report.annotations import commands_stopped
    from deploycompress.report.document import read
    from deploycompress.report.render import render, terminal_summary

    report = read(run_dir / "report.json")
    render(report, run_dir)
    with commands_stopped(click.echo):
        click.echo(terminal_summary(report))
        click.echo(f"report: {run_dir / 'report.html'}")
