"""Writes the report in its forms, from report.json's document alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploycompress.artifact import write_text
from deploycompress.errors import EnvironmentMissing
from deploycompress.report import junit, pages, series, terminal
from deploycompress.report.document import Report, check
from deploycompress.writing import append_to

MOST_SUMMARY_BYTES = 60_000  # a pull request's comment holds 64 KB
MOST_STEP_BYTES = 2**20  # of a step's summary; GitHub drops a larger one whole
CUT = "\n\nThis summary is cut here, since no more of it would be shown; report.html has the rest.\n"


def render(report: Mapping[str, Any], run_dir: Path) -> None:
    """Write report.html, summary.md, junit.xml and the figures for benchmark services into ``run_dir``.

    The summary is also appended to the file that GITHUB_STEP_SUMMARY names. Raises ConfigError when
    ``report`` is not a report, EnvironmentMissing when that file cannot be written.
    """
    document = check(report)
    short = summary(document)
    write_text(run_dir / "report.html", pages.html(document))
    write_text(run_dir / "summary.md", short)
    write_text(run_dir / "junit.xml", junit.junit(document))
    write_text(run_dir / "bencher.json", series.bencher(document))
    write_text(run_dir / "github-action-benchmark.json", series.github_action_benchmark(document))
    _append_step_summary(short)


def summary(report: Report) -> str:
    """summary.md: the verdict first; as many rows as fit into a comment."""
    for most in (200, 50, 12):
        text = pages.markdown("summary.md", report, most=most)
        if len(text.encode()) <= MOST_SUMMARY_BYTES:
            break
    return cut(text, MOST_SUMMARY_BYTES)


def cut(markdown: str, most_bytes: int) -> str:
    """As many lines of a summary as fit, and a sentence that says so; nothing where even that does not fit."""
    if len(markdown.encode()) <= most_bytes:
        return markdown
    close = "\n\n</details>"
    room = most_bytes - len((close + CUT).encode())
    if room < 0:
        return ""
    kept, _, _ = markdown.encode()[:room].decode(errors="ignore").rpartition("\n")
    is_open = kept.count("<details>") > kept.count("</details>")
    return kept + close * is_open + CUT


def terminal_summary(report: Mapping[str, Any]) -> str:
    """The verdict, the gates and the artefacts, for a terminal."""
    return terminal.summary(check(report))


def _append_step_summary(text: str) -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with append_to(Path(path)) as stream:
            taken = os.fstat(stream.fileno()).st_size
            stream.write(cut(text + "\n", MOST_STEP_BYTES - taken))
    except OSError as error:
        raise EnvironmentMissing(
            f"GITHUB_STEP_SUMMARY names {path}, which cannot be written: {error}; unset it, or make it writable"
        ) from error
