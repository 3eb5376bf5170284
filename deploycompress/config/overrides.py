"""``--set prune.target.macs=30%``: one value of a configuration, replaced from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploycompress.config import steps
from deploycompress.config.document import Document, KeyPath, Place
from deploycompress.config.schema import PipelineConfig
from deploycompress.config.wording import listed, nearest, shown
from deploycompress.config.yaml_file import parse
from deploycompress.errors import ConfigError, Problem

TOP_KEYS = tuple(name for name, field in PipelineConfig.model_fields.items() if not field.exclude)


@dataclass(frozen=True)
class Override:
    """``path`` begins with a top-level key or a step's id."""

    text: str
    path: tuple[str, ...]
    value: Any

    @property
    def where(self) -> str:
        return f"--set {self.text}"


class _Refused(Exception):
    """Why an override does not apply."""


def parse_override(text: str) -> Override:
    """``key.key=value``, the value as it would stand in YAML. Raises ConfigError."""
    key, separator, value = text.partition("=")
    where = f"--set {text}"
    parts = tuple(part.strip() for part in key.split("."))
    if not separator or not all(parts):
        raise ConfigError([Problem("expected key.key=value, such as prune.target.macs=30%", where)])
    if not value.strip():
        return Override(text, parts, None)
    try:
        document = parse(value, where)
    except ConfigError as error:
        raise ConfigError([Problem(f"the value is {error.problems[-1].message}", where)]) from error
    if document.problems:
        raise ConfigError([Problem(document.problems[0].message, where)])
    return Override(text, parts, document.data)


def apply(document: Document, overrides: Sequence[Override]) -> list[Override]:
    """Change ``document`` as it stands in the file; gives back those that name one round of a repeated step.

    Mistakes are noted in ``document``, placed at the override.
    """
    later = []
    for override in overrides:
        known = steps.written(document)  # an override before this one may have changed the list
        try:
            if _of_round(override.path[0], document, known):
                later.append(override)
            else:
                _put(document, _start(override, document, known), override)
        except _Refused as refusal:
            document.problems.append(Problem(str(refusal), override.where))
    return later


def apply_to_rounds(document: Document, overrides: Sequence[Override]) -> None:
    """The same after ``repeat`` was written out, for ``prune@2.target.macs=40%``."""
    for override in overrides:
        ids = [step["id"] for step in document.data["stages"]]
        id, *rest = override.path
        try:
            if id not in ids:  # what it belongs to did not read
                continue
            step: KeyPath = ("stages", ids.index(id))
            part = "options" if rest and rest[0] in steps.OPTIONS else "config"
            _put(document, (*step, part, *rest), override)
        except _Refused as refusal:
            document.problems.append(Problem(str(refusal), override.where))


# ---------------------------------------------------------------- where a path begins


def _of_round(head: str, document: Document, known: Sequence[steps.Written]) -> bool:
    """Whether ``head`` is ``prune@2`` of a repeated ``prune``."""
    if any(step.id == head for step in known):
        return False
    id, _, number = head.partition("@")
    repeats = [document.value(s.repeat).get("repeat") for s in known if s.id == id and s.repeat is not None]
    if not number or not repeats:
        return False
    rounds = repeats[0]
    if number.isdigit() and isinstance(rounds, int) and 1 <= int(number) <= rounds:
        return True
    raise _Refused(f"{id!r} has the rounds {id}@1 to {id}@{rounds}; received {head!r}")


def _start(override: Override, document: Document, known: Sequence[steps.Written]) -> KeyPath:
    """The place in the file of an override's path. Raises _Refused."""
    head, *rest = override.path
    named = [s for s in known if head in (s.id, steps.default_id(s.stage), s.stage)]
    if head in TOP_KEYS:
        if any(step.id == head for step in named):
            raise _Refused(
                f"{head!r} is ambiguous: a top-level key and a step's id; give the step another id in the file"
            )
        return override.path
    own = [step for step in named if step.id == head and step.chosen]
    if len(named) > 1 and len(own) != 1:
        ids = listed([repr(step.id) for step in named], last="and")
        raise _Refused(
            f"{head!r} is ambiguous: the steps {ids} run it; give each an id of its own in the file"
        )
    if not named:
        every = list(dict.fromkeys(step.id for step in known))
        close = nearest(head, [*TOP_KEYS, *every])
        question = f"did you mean {close!r}? A path" if close else "a path"
        raise _Refused(
            f"unknown path {head!r}; {question} begins with a top-level key ({listed(TOP_KEYS)}) "
            f"or a step's id ({listed(every) or 'there are none'})"
        )
    step = (own or named)[0]
    item = document.value(step.path)
    if not isinstance(item, dict):  # `- export`: room for a configuration
        _replace(document, step.path, {step.stage: {}})
    elif item[step.stage] is None:
        _replace(document, step.config, {})
    return (*step.config, *rest)


def _replace(document: Document, path: KeyPath, value: Any) -> None:
    document.put(path, value, document.place(path))


# ---------------------------------------------------------------- putting a value


def _put(document: Document, path: KeyPath, override: Override) -> None:
    """Put the override's value at ``path``; mappings on the way that are not there yet are made."""
    place = Place(override.where, override.where, "")
    node, at = document.data, 0
    while True:
        key = _key(node, path, at, override)
        missing = isinstance(node, dict) and node.get(key) is None
        if at == len(path) - 1:
            document.put((*path[:at], key), override.value, place)
            return
        if missing:
            document.put((*path[:at], key), {}, place)
        path = (*path[:at], key, *path[at + 1 :])
        node, at = node[key], at + 1


def _key(node: Any, path: KeyPath, at: int, override: Override) -> str | int:
    """The key, or the index, that ``path[at]`` means in ``node``. Raises _Refused."""
    part = path[at]
    before = ".".join(override.path[: len(override.path) - len(path) + at])
    if isinstance(node, dict):
        return part
    if isinstance(node, list):
        if isinstance(part, int):
            return part
        if part.isdigit() and int(part) < len(node):
            return int(part)
        raise _Refused(f"{before} is a list of {len(node)}; expected 0 to {len(node) - 1}, received {part!r}")
    raise _Refused(f"{before} is {shown(node)} and has no {part!r}; set {before} as a whole")
