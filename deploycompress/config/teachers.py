"""The teachers, and networks of their own, that the configuration of a step names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploycompress.config import references
from deploycompress.config.document import Document, KeyPath
from deploycompress.config.files import with_each
from deploycompress.config.schema import Network
from deploycompress.config.validation import M

KEY = "teacher"  # of a stage's configuration; it names steps and files as `from` does
ROUNDS = ("previous", "mixed")  # what only a repeat gives a meaning


def of_round(given: Any, step: str, round: int, in_round: Callable[[str], str]) -> tuple[Any, str | None]:
    """A teacher, or a list of them, for one round of the step that is called ``step`` in the file; and a mistake.

    ``previous`` is what the step made in the round before, ``mixed`` that and the original; in the first round both
    are the original. ``in_round`` says which step another id means there. Round 0: the step is in no repeat.
    """
    before = f"{step}@{round - 1}" if round > 1 else "original"
    meant = {"previous": [before], "mixed": ["original", before]}
    found: list[Any] = []
    for teacher in given if isinstance(given, list) else [given]:
        if not isinstance(teacher, str):
            found.append(teacher)
        elif teacher not in meant:
            found.append(in_round(teacher))
        elif round:
            found += meant[teacher]
        else:
            return given, (
                f"{teacher!r} is the student of the round before; this step is in no repeat: give a step's id"
            )
    several = [teacher for number, teacher in enumerate(found) if teacher not in found[:number]]
    return (several[0] if len(several) == 1 else several), None


def with_files(given: Any, file: Callable[[str], str | None]) -> Any:
    """A teacher, or a list of them, with what ``file`` gives for every one that is text."""
    if isinstance(given, list):
        return [with_files(one, file) for one in given]
    return file(given) if isinstance(given, str) else given


def with_builds(model: M, document: Document, path: KeyPath, folders: Sequence[Path]) -> M:
    """``model`` with absolute files in the builds of its networks; one that is not found is noted as a mistake."""

    def absolute(key: KeyPath, network: Network) -> Network:
        reason = references.locate(network.build, folders)
        if reason is not None:
            document.report((*path, *key, "build"), f"{network.build!r}: {reason}")
        return network.model_copy(update={"build": references.absolute(network.build, folders)})

    return with_each(model, Network, absolute)
