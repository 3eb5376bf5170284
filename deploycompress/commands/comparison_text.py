"""A comparison as text and as Markdown; names of reports and files are escaped here."""

from __future__ import annotations

from collections.abc import Iterator

from deploycompress.commands.comparison import Comparison, Line, spelt
from deploycompress.report.figures import NOTHING, clean, figure
from deploycompress.report.pages import escaped
from deploycompress.report.terminal import table

HEAD = ("metric", "BASE", "HEAD", "difference (95 % interval)", "gate", "", "verdict")


def text(found: Comparison) -> str:
    rows = [[*_cells(line), _said(line)] for line in found.lines]
    return "\n".join(
        [clean(found.headline), f"  BASE {clean(found.base)}", f"  HEAD {clean(found.head)}", ""]
        + table([HEAD, *rows])
        + [f"  {line}" for line in _notes(found)]
    )


def markdown(found: Comparison) -> str:
    """For a comment on a pull request."""
    lines = [
        f"## {escaped(found.headline, 400)}",
        "",
        f"BASE {escaped(found.base)}, HEAD {escaped(found.head)}",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|--:|--:|--:|---|---|---|",
        *(
            "| " + " | ".join(escaped(cell, 300) for cell in (*_cells(line), _said(line))) + " |"
            for line in found.lines
        ),
        "",
    ]
    notes = [f"- {escaped(note, 400)}" for note in _notes(found)]
    return "\n".join([*lines, *notes, *([""] if notes else [])])


def _cells(line: Line) -> list[str]:
    return [
        clean(line.metric),
        figure(line.base, line.unit),
        figure(line.head, line.unit),
        spelt(line.change) or NOTHING,
        clean(line.limits),
        line.rulings,
    ]


def _said(line: Line) -> str:
    return line.verdict + (f": {clean(line.message)}" if line.message else "")


def _notes(found: Comparison) -> Iterator[str]:
    if found.measured:
        yield "measured now, side by side on one machine"
    yield from (clean(note) for note in found.notes)
    yield from (f"gate {clean(v.metric)}: {clean(v.message)}" for v in found.blocked)
