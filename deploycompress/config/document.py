"""A configuration as plain data, together with the place in the file each value came from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from deploycompress.errors import Problem

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where one value was written: ``pipeline.yaml:12:9`` or ``--set prune.target.macs=30%``."""

    key: str  # where its key stands; for the item of a list, where the item stands
    value: str
    written: str  # its path in the file: "stages.1.prune.target"


@dataclass
class Document:
    """Plain data (mappings, lists, text, numbers, true/false, null) and the place of every part of it."""

    name: str  # of the file, as in messages
    data: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """The place of ``path``, or of the nearest thing around it that has one."""
        for length in range(len(path), -1, -1):
            found = self.places.get(path[:length])
            if found is not None:
                written = ".".join([found.written] * bool(found.written) + [str(p) for p in path[length:]])
                return Place(found.key, found.value, written)
        return Place(self.name, self.name, ".".join(map(str, path)))

    def report(self, path: KeyPath, message: str, *, key: bool = False) -> None:
        """Note a mistake in the value at ``path``, or in its key."""
        place = self.place(path)
        problem = Problem(message, place.key if key else place.value, place.written)
        if problem not in self.problems:  # a step that is repeated has its mistakes once
            self.problems.append(problem)

    def value(self, path: KeyPath) -> Any:
        """What stands at ``path``. Raises LookupError."""
        node = self.data
        for part in path:
            try:
                node = node[part]
            except TypeError as error:
                raise LookupError(part) from error
        return node

    def put(self, path: KeyPath, value: Any, place: Place) -> None:
        """Replace what stands at ``path``, whose parent must exist."""
        self.value(path[:-1])[path[-1]] = value
        for known in [p for p in self.places if p[: len(path)] == path]:
            del self.places[known]
        self.places[path] = place


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """The order of the file; mistakes of ``--set`` and those without a place come last."""

    def position(problem: Problem) -> tuple[int, int, int]:
        match = re.search(r":(\d+):(\d+)$", problem.where)
        if match is None or problem.where.startswith("--set "):
            return (1, 0, 0)
        return (0, int(match[1]), int(match[2]))

    return sorted(problems, key=position)
