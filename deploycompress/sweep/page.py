"""A sweep's report.html and its words for the terminal, from its report.json alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deploycompress.artifact import write_text
from deploycompress.report import pages, view
from deploycompress.report.figures import NOTHING, bare, duration, figure, plural, significant
from deploycompress.sweep import plots
from deploycompress.sweep.objectives import Objective

TEMPLATES = Path(__file__).parent / "templates"
SIZES = {"wide": (1000, 360), "narrow": (360, 320)}
VERDICTS = {"pass": "Passed", "fail": "No trial meets the gates", "error": "No trial came to its end"}

Record = Mapping[str, Any]


def render(report: Record, folder: Path) -> None:
    """Write report.html into ``folder``: one file without scripts, as that of a run."""
    write_text(folder / "report.html", html(report))


def html(report: Record) -> str:
    style = "".join(
        (t / f).read_text(encoding="utf-8")
        for t, f in ((pages.TEMPLATES, "report.css"), (TEMPLATES, "sweep.css"))
    )
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, pages.TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["px"] = lambda value: f"{value:.1f}".removesuffix(".0")
    objectives = _objectives(report)
    charts = [
        [(name, plots.chart(report, x, y, *size)) for name, size in SIZES.items()]
        for x, y in plots.axes(objectives)
    ]
    return environment.get_template("sweep.html").render(
        style=Markup(style),
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        report=report,
        verdict=VERDICTS[report["verdict"]],
        mark=view.MARKS[report["verdict"]],
        headline=headline(report),
        circumstances=_circumstances(report),
        charts=[pair for pair in charts if all(chart is not None for _, chart in pair)],
        objectives=objectives,
        front=[_row(r, report) for r in _ahead(report)],
        trials=[_row(t, report) for t in report["trials"]],
        competitors=[_row(c, report) for c in report["competitors"]],
        importances=_importances(report),
        facts=view.facts(report["environment"]),
    )


def headline(report: Record) -> str:
    """What came out, in a sentence or two."""
    counts = _counts(report)
    if report["best"] is None:
        failed = [t for t in report["trials"] if t["error"]]
        why = (
            f" The first: {failed[0]['error'].splitlines()[0]}"
            if report["verdict"] == "error" and failed
            else ""
        )
        return f"{counts}; none meets the gates.{why}" if report["verdict"] != "error" else f"{counts}.{why}"
    best = next(t for t in report["trials"] if t["name"] == report["best"])
    told = ", ".join(f"{o.name} {_figure(best, o)}" for o in _objectives(report))
    return f"{counts}. The best that meets all gates is {best['name']}: {told}."


def terminal(report: Record) -> str:
    """The verdict and the front, for a terminal."""
    objectives = _objectives(report)
    rows = [["", *(o.name for o in objectives), "", ""]]
    for record in _ahead(report):
        mark = "* " if record["name"] == report["best"] else "  "
        values = " ".join(f"{path}={text}" for path, text in record.get("values", {}).items())
        rows.append([mark + record["name"], *(_figure(record, o) for o in objectives), _word(record), values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    head = f"{VERDICTS[report['verdict']]}: {report['name']}\n  {headline(report)}"
    front = (
        ["", "Pareto front (* the best under the gates)", *("  " + line for line in lines)]
        if rows[1:]
        else []
    )
    return "\n".join([head, *front])


# ---------------------------------------------------------------- rows


def _row(record: Record, report: Record) -> dict[str, Any]:
    cost = duration(record["seconds"]) if "seconds" in record else ""
    reused = record.get("reused", [])
    return {
        "name": record["name"],
        "is_best": record["name"] == report["best"],
        "on_front": record["name"] in report["front"],
        "chosen": list(record.get("values", {}).items()),
        "figures": [(o.name, _figure(record, o), _interval(record, o)) for o in _objectives(report)],
        "state": record["state"],
        "verdict": _word(record),
        "badge": record["state"]
        if record["state"] != "complete"
        else ""
        if record.get("number") is None
        else record["verdict"],
        "cost": cost,
        "made": ", ".join(record.get("made", [])),
        "reused": ", ".join(reused),
        "saved": duration(record["saved_seconds"]) if reused else "",
        "error": record["error"],
        "folder": record.get("folder", ""),
    }


def _ahead(report: Record) -> list[Record]:
    first = _objectives(report)[0]
    every = [r for r in (*report["competitors"], *report["trials"]) if r["name"] in report["front"]]
    return sorted(every, key=lambda r: -first.sign * r["objectives"][first.name]["value"])


def _word(record: Record) -> str:
    if record["state"] != "complete":
        return str(record["state"])
    if record.get("number") is None:  # it has no baseline but itself, so that its gates say nothing
        return "competitor"
    return {"pass": "meets the gates", "fail": "fails a gate", "inconclusive": "cannot be decided"}.get(
        record.get("verdict", ""), "competitor"
    )


def _figure(record: Record, objective: Objective) -> str:
    told = record["objectives"].get(objective.name)
    return NOTHING if told is None else figure(told["value"], objective.unit)


def _interval(record: Record, objective: Objective) -> str:
    told = record["objectives"].get(objective.name)
    if told is None or told["low"] == told["high"]:
        return ""
    return f"{bare(figure(told['low'], objective.unit))} to {figure(told['high'], objective.unit)}"


def _importances(report: Record) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """Objective -> path, share as text, per cent of the width."""
    return [
        (name, [(path, f"{significant(100 * share)} %", 100 * share) for path, share in shares.items()])
        for name, shares in report["importances"].items()
    ]


def _circumstances(report: Record) -> list[str]:
    costs = report["costs"]
    made, reused = plural(costs["steps_made"], "step"), f"{costs['steps_reused']} reused"
    spared = f", which had cost {duration(costs['saved_seconds'])}" if costs["steps_reused"] else ""
    return [
        report["started"].replace("T", " ").replace("+00:00", " UTC"),
        duration(report["seconds"]),
        f"{report['method']} over {report['pipeline']}",
        f"{made} made, {reused}{spared}",
    ]


def _counts(report: Record) -> str:
    states = [t["state"] for t in report["trials"]]
    words = [
        f"{states.count(s)} {word}"
        for s, word in (("pruned", "ended as hopeless"), ("failed", "failed"))
        if s in states
    ]
    return plural(len(states), "trial") + (f", {' and '.join(words)}" if words else "")


def _objectives(report: Record) -> Sequence[Objective]:
    return [Objective(**o) for o in report["objectives"]]
