"""Fills the report's templates; everything that comes from a model or a device is escaped here."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deploycompress.report import bars, classes, layers, metrics, scatter, sentences, strips, trend, view
from deploycompress.report.document import Report
from deploycompress.report.figures import figure, shortened
from deploycompress.report.placed import placements
from deploycompress.report.tried import tried_views

TEMPLATES = Path(__file__).parent / "templates"
MOST_WIDTHS = 40  # layers shown at once; the others unfold
# An underscore within a word is none of Markdown's; some characters mean something only at the beginning.
# What GitHub and GitLab make links of, and messages to people; an invisible joint after it leaves it text.
_LINKS = re.compile(r"(?<!\w)@(?=\w)|#(?=\d)|:(?=//)|\bwww(?=\.)|\bgh-(?=\d)", re.IGNORECASE)
_JOINT = "\u2060"
_MARKDOWN = re.compile(r"([\\`*{}\[\]|~$]|(?<!\w)_|_(?!\w)|^[#+=-]|^\d+(?=[.)](?:\s|$)))")


def html(report: Report) -> str:
    """The page: one file without scripts or network, its only style allowed by its own digest."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = _environment(autoescape=True)
    environment.globals["style"] = Markup(style)
    environment.globals["style_digest"] = digest
    return environment.get_template("report.html").render(
        **_common(report),
        plots=[(name, scatter.scatter(report, *size)) for name, size in _PLOT_SIZES.items()],
        distributions=[(name, strips.strips(report, width)) for name, (width, _) in _PLOT_SIZES.items()],
        waterfalls=bars.waterfalls(report),
        layers=layers.layers(report),
        changes=classes.class_changes(report),
        trend=trend.trend(report),
        pareto_note=sentences.pareto_note(report),
        widths=bars.width_bars(report),
        most_widths=MOST_WIDTHS,
        remaining=bars.remaining(report),
        other_rows=view.artefact_views(report, at_target=False),
        unmeasured=view.unmeasured(report),
        metrics=metrics.metrics_table(report),
        classes=metrics.class_table(report),
        parity=view.parity_rows(report),
        facts=view.facts(report.environment),
    )


def markdown(template: str, report: Report, **more: Any) -> str:
    """A Markdown template filled; in it, ``md`` escapes what is foreign."""
    environment = _environment(autoescape=False)
    environment.filters["md"] = escaped
    return environment.get_template(template).render(**_common(report), **more)


def escaped(text: object, most: int = 120) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no link, no mention, no table cell of its own, one line."""
    plain = shortened(" ".join(str(text).split()), most)
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = _MARKDOWN.sub(lambda m: f"{m[0]}\\" if m[0].isdigit() else f"\\{m[0]}", plain)
    return _LINKS.sub(lambda m: m[0] + _JOINT, plain)


_PLOT_SIZES = {"wide": (1000, 430), "narrow": (360, 360)}


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["figure"] = figure
    environment.filters["px"] = lambda value: f"{value:.1f}".removesuffix(".0")
    return environment


def _common(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "verdict": view.VERDICTS[report.verdict],
        "mark": view.MARKS[report.verdict],
        "headline": sentences.headline(report),
        "warnings": view.warnings(report),
        "row_notes": view.row_notes(report),
        "tried": tried_views(report),
        "placements": placements(report),
        "circumstances": sentences.circumstances(report),
        "conditions": sentences.conditions(report),
        "gates": [view.gate_view(gate) for gate in report.gates],
        "tiles": view.tiles(report),
        "rows": view.artefact_views(report),
        "stages": view.stage_views(report),
        "notes": [(stage.name, note) for stage in report.stages for note in stage.notes],
    }
