"""``deploycompress doctor``: what is here, what can run, and what to do about the rest; one line each."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> None:
    """What is installed here, which runtimes can run, and what to do about the rest."""
    from deploycompress.commands.checks import checks

    for check in checks():
        mark = {"ok": "ok     ", "missing": "missing", "note": "note   "}[check.state]
        remedy = f"; {check.remedy}" if check.remedy else ""
        click.echo(f"{mark}  {check.subject:<14} {check.finding}{remedy}")
