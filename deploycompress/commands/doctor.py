"""``deploycompress doctor``: what is here, what can run, and what to do about the rest; one line each."""

from __future__ import annotations

import click

from deploycompress.commands.output import only_text, say


@click.command("doctor")
@only_text
def command() -> None:
    """What is installed here, which runtimes can run, and what to do about the rest."""
    from deploycompress.commands.checks import checks

    for check in checks():
        mark = {"ok": "ok     ", "missing": "missing", "note": "note   "}[check.state]
        remedy = f"; {check.remedy}" if check.remedy else ""
        say(f"{mark}  {check.subject:<14} {check.finding}{remedy}")
