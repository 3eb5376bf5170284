"""Writes the report in its forms, from report.json's document alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploycompress.artifact import write_text
from deploycompress.errors import EnvironmentMissing
from deploycompress.report import junit, pages, series, terminal
from deploycompress.report.annotations import STEP_SUMMARY
from deploycompress.report.document import Report, check
from deploycompress.writing import append_to

SUMMARY = "summary.md"
MOST_SUMMARY_BYTES = 60_000  # a pull request's comment holds 64 KB
MOST_STEP_BYTES = 2**20  # of a step's summary; GitHub drops a larger one whole
CUT = "\n\nThis summary is cut here, since no more of it would be shown; report.html has the rest.\n"


def render(report: Mapping[str, Any], run_dir: Path) -> None:
    """Write report.html, summary.md, junit.xml and the figures for benchmark services into ``run_dir``.

    Raises ConfigError when ``report`` is not a report.
    """
    document = check(report)
    write_text(run_dir / "report.html", pages.html(document))
    write_text(run_dir / SUMMARY, summary(document))
    write_text(run_dir / "junit.xml", junit.junit(document))
    write_text(run_dir / "bencher.json", series.bencher(document))
    write_text(run_dir / "github-action-benchmark.json", series.github_action_benchmark(document))


def append_to_job_summary(run_dir: Path) -> None:
    """The summary of ``run_dir``, which was rendered, after what the job's summary on GitHub holds; nothing elsewhere.

    Raises EnvironmentMissing when the file that GITHUB_STEP_SUMMARY names cannot be written.
    """
    path = os.environ.get(STEP_SUMMARY)
    if not path:
        return
    text = (run_dir / SUMMARY).read_text(encoding="utf-8") + "\n"
    try:
        with append_to(Path(path)) as stream:
            taken = os.fstat(stream.fileno()).st_size
            stream.write(cut(text, MOST_STEP_BYTES - taken))
    except OSError as error:
        raise EnvironmentMissing(
            f"{STEP_SUMMARY} names {path}, which cannot be written: {error}; unset it, or make it writable"
        ) from error


def summary(report: Report) -> str:
    """summary.md: the verdict first; as many rows as fit into a comment."""
    for most in (200, 50, 12):
        text = pages.markdown(SUMMARY, report, most=most)
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
