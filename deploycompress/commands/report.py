"""``deploycompress report``: write a run's page, summary and JUnit file again from its report.json."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report", short_help="Render a run's report again from its report.json.")
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
def command(run_dir: Path) -> None:
    """Write report.html, summary.md and junit.xml of RUN_DIR again, and print the summary."""
    from deploycompress.report.document import read
    from deploycompress.report.render import render, terminal_summary

    report = read(run_dir / "report.json")
    render(report, run_dir)
    click.echo(terminal_summary(report))
    click.echo(f"report: {run_dir / 'report.html'}")
