"""GitHub's annotations: one for each configuration mistake and each failed gate, and none for anything else."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deploycompress.errors import ConfigError, Problem
from deploycompress.report.figures import shortened

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"  # names the file whose Markdown a runner shows for the job
MOST = 10  # errors that GitHub shows of a step; it drops the others without a word
MOST_CHARACTERS = 4000  # of a message; the runner cuts it at 4096
MOST_TITLE = 200  # characters; GitHub takes 255
_PLACE = re.compile(r"(?P<file>.+):(?P<line>\d+):(?P<column>\d+)", re.DOTALL)
_COMMAND = re.compile(r"((?:^|(?<=[\r\n]))\s*:(?=:)|##(?=\[))")


def on_github() -> bool:
    """Whether a runner of GitHub Actions reads what is printed."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def of_mistakes(problems: Sequence[Problem]) -> list[str]:
    """A workflow command for each mistake, at its file, line and column where it has them."""
    found = [
        _error(": ".join(part for part in (p.path, p.message) if part), "Configuration", p.where)
        for p in problems
    ]
    return _at_most(found, "mistakes")


def of_report(report: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
    """One for each gate that fails the run, at the place of its key; ``places``: gate -> ``file:line:column``.

    A run that a step ended has judged nothing: it has one where the configuration was at fault, else none.
    """
    from deploycompress.report.document import check
    from deploycompress.report.view import gate_view

    document = check(report)
    if document.error is not None:
        mistaken = document.error.class_ == ConfigError.__name__
        return of_mistakes([Problem(document.error.message)]) if mistaken else []
    found = []
    for gate in document.gates:
        if gate.verdict == "pass" or gate.only_warns:
            continue
        shown = gate_view(gate)
        what = "failed" if gate.verdict == "fail" else "cannot be decided"
        message = f"{shown.value}, wanted {shown.limit}: {shown.message}"
        found.append(_error(message, f"{document.name}: {gate.metric} {what}", places.get(gate.metric, "")))
    return _at_most(found, "gates")


@contextmanager
def commands_stopped(say: Callable[[str], object]) -> Iterator[None]:
    """Within it the runner obeys nothing that is printed: a name may begin with ``::``, or hold ``##[``.

    ``say`` prints a line where the annotations will be printed: two streams have no order between them.
    """
    if not on_github():
        yield
        return
    token = secrets.token_hex(16)  # not to be guessed by what is printed
    say(f"::stop-commands::{token}")
    try:
        yield
    finally:
        say(f"::{token}::")


def defused(text: str) -> str:
    """For GitHub's runner no command, for a reader the same; for what goes to another stream than annotations."""
    return _COMMAND.sub(r"\1 ", text) if on_github() else text


def _at_most(lines: list[str], what: str) -> list[str]:
    if len(lines) <= MOST:
        return lines
    left = len(lines) - (MOST - 1)
    return [*lines[: MOST - 1], _error(f"{left} more {what} are in the log of this step.", "More", "")]


def _error(message: str, title: str, where: str) -> str:
    properties: dict[str, str] = {}
    if where.startswith("--"):  # a value of the command line has no place in a file
        message = f"{where}: {message}"
    elif where:
        place = _PLACE.fullmatch(where)
        # Absolute: the runner makes it relative to the repository, whatever folder the step works in.
        properties["file"] = os.path.abspath(place["file"] if place else where)
        if place:
            properties |= {"line": place["line"], "col": place["column"]}
    properties["title"] = shortened(title, MOST_TITLE)
    given = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::error {given}::{_data(shortened(message, MOST_CHARACTERS))}"


def _data(text: str) -> str:
    """Escaped as the runner unescapes it: the per cent sign first, since the others make some."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
