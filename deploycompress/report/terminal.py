"""The report in a terminal: verdict, gates, artefacts."""

from __future__ import annotations

from collections.abc import Sequence

from deploycompress.report import sentences, view
from deploycompress.report.document import Report
from deploycompress.report.figures import shortened


def summary(report: Report) -> str:
    """Plain text without colours; every name was freed of control characters when it was read."""
    lines = [f"{view.VERDICTS[report.verdict]}: {report.name}", f"  {sentences.headline(report)}"]
    lines += [f"  warning, {stage}: {text}" for stage, text in view.warnings(report)]
    gates = [view.gate_view(gate) for gate in report.gates]
    if gates:
        rows = [[g.mark, g.metric, g.limit, g.value, g.word, g.message] for g in gates]
        lines += ["", "Gates", *table(rows)]
    artefacts = view.artefact_views(report)
    if artefacts:
        head = ["", "artefact", "size", "p50", "p90", "p99", "speed-up", report.primary.name]
        rows = [
            [
                "*" if a.is_best else "",
                a.name,
                a.size,
                a.p50,
                a.p90,
                a.p99,
                a.speedup,
                f"{a.metric} {a.change}",
            ]
            for a in artefacts
        ]
        lines += ["", "Artefacts (* the best)", *table([head, *rows])]
        lines += [f"  {artefact}: {note}" for artefact, note in view.row_notes(report)]
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of equally wide columns; all cells but the last of a row are cut where they are long."""
    cells = [[shortened(cell, 48) for cell in row[:-1]] + [row[-1]] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
