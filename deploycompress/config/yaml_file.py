"""YAML text -> plain data with the place of every value; YAML 1.2, without tags, bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from deploycompress.config.document import Document, KeyPath, Place
from deploycompress.config.wording import listed, nearest
from deploycompress.config.yaml_text import resolve
from deploycompress.errors import ConfigError, Problem

MAX_BYTES = 2**20
MAX_DEPTH = 64
MAX_VALUES = 20_000  # with every alias written out

Mark = tuple[int, int]  # line and column, from 1


def load(path: Path) -> Document:
    """Read a file of at most 1 MiB. Raises ConfigError with file:line:column."""
    name = str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{name} does not exist{_others(path)}") from error
    except (OSError, ValueError) as error:  # a folder, no permission, a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{name} cannot be read: {reason}; expected a YAML file") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{name} has more than {MAX_BYTES} bytes; a configuration has fewer")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        where = f"{name}:{before.count(10) + 1}:{error.start - before.rfind(10)}"
        byte = raw[error.start]
        message = f"byte 0x{byte:02x} is not UTF-8 text; save the file in UTF-8"
        raise ConfigError([Problem(message, where)]) from error
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Plain data of the one document in ``text``; duplicate keys are noted in its ``problems``.

    Raises ConfigError at the first thing that is not YAML, or is not allowed in a configuration.
    """
    builder = _Builder(name)
    try:
        root = builder.build(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = (place.line + 1, place.column + 1) if place else (1, 1)
        builder.stop(mark, _syntax(error), error)
    except ReaderError as error:
        before = text[: error.position]
        mark = (before.count("\n") + 1, error.position - before.rfind("\n"))
        builder.stop(mark, f"not YAML: the character {chr(error.character)!r} is not allowed", error)
    except (YAMLError, ValueError, AssertionError, NotImplementedError) as error:
        builder.stop((1, 1), f"not YAML: {error}", error)
    document = Document(name, None, problems=builder.problems)
    builder.values = 0  # counted again, with every alias written out
    document.data = builder.plain(root, document, (), root.mark)
    return document


@dataclass
class _Node:
    mark: Mark
    scalar: Any = None
    items: list[_Node] | None = None
    pairs: dict[str, tuple[Mark, _Node]] | None = None
    target: _Node | None = None  # of an alias


@dataclass
class _Builder:
    name: str
    problems: list[Problem] = field(default_factory=list)
    anchors: dict[str, _Node | None] = field(default_factory=dict)
    values: int = 0
    alias: Mark | None = None  # the outermost one that is being written out

    def stop(self, mark: Mark, message: str, cause: BaseException | None = None) -> NoReturn:
        raise ConfigError([*self.problems, Problem(message, self.where(mark))]) from cause

    def where(self, mark: Mark) -> str:
        return f"{self.name}:{mark[0]}:{mark[1]}"

    def count(self, mark: Mark) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(
                self.alias or mark, f"more than {MAX_VALUES} values, aliases written out; that is too many"
            )

    def build(self, events: Iterator[Event]) -> _Node:
        for event in events:
            if isinstance(event, StreamEndEvent):
                self.stop((1, 1), "the file is empty; `deploycompress init` writes one to start from")
            if isinstance(event, DocumentStartEvent):
                break
        root = self.node(next(events), events, ())
        for event in events:
            if isinstance(event, DocumentStartEvent):
                self.stop(_mark(event), "a second document begins here; a configuration is one document")
        return root

    def node(self, event: Event, events: Iterator[Event], path: KeyPath) -> _Node:
        mark = _mark(event)
        self.count(mark)
        if len(path) > MAX_DEPTH:
            self.stop(mark, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, AliasEvent):
            target = self.anchors.get(event.anchor)
            if target is None:
                within = "is inside itself" if event.anchor in self.anchors else "was not defined before it"
                self.stop(mark, f"the alias *{event.anchor} {within}")
            return _Node(mark, target=target)
        assert isinstance(event, (ScalarEvent, SequenceStartEvent, MappingStartEvent))
        if event.ctag is not None:
            self.stop(mark, f"the tag {event.ctag} is not allowed; write the plain value")
        if event.anchor:
            self.anchors[event.anchor] = None
        node = self.content(event, events, mark, path)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def content(self, event: Event, events: Iterator[Event], mark: Mark, path: KeyPath) -> _Node:
        if isinstance(event, SequenceStartEvent):
            items: list[_Node] = []
            while not isinstance(following := next(events), SequenceEndEvent):
                items.append(self.node(following, events, (*path, len(items))))
            return _Node(mark, items=items)
        if isinstance(event, MappingStartEvent):
            pairs: dict[str, tuple[Mark, _Node]] = {}
            while not isinstance(following := next(events), MappingEndEvent):
                self.pair(following, events, path, pairs)
            return _Node(mark, pairs=pairs)
        assert isinstance(event, ScalarEvent)
        scalar = resolve(event.value) if event.implicit[0] else event.value
        if isinstance(scalar, float) and not math.isfinite(scalar):
            self.stop(mark, f"received {event.value}, expected a finite number")
        return _Node(mark, scalar=scalar)

    def pair(
        self, event: Event, events: Iterator[Event], path: KeyPath, pairs: dict[str, tuple[Mark, _Node]]
    ) -> None:
        mark = _mark(event)
        if not isinstance(event, ScalarEvent) or event.ctag is not None:
            self.stop(mark, "a key must be a plain word, not a list, a mapping, an alias or a tag")
        key = event.value
        if key == "<<" and event.implicit[0]:
            self.stop(mark, "merge keys (<<) are not part of YAML 1.2; write the keys out")
        value = self.node(next(events), events, (*path, key))
        if key in pairs:
            line, column = pairs[key][0]
            message = f"duplicate key {key!r}; it already stands in line {line}, column {column}"
            self.problems.append(Problem(message, self.where(mark), _dotted((*path, key))))
        else:
            pairs[key] = (mark, value)

    def plain(
        self, node: _Node, document: Document, path: KeyPath, key: Mark, mark: Mark | None = None
    ) -> Any:
        """Plain data, aliases written out, every value's place noted in ``document``."""
        mark = mark or node.mark
        self.count(mark)
        if node.target is not None:
            outer, self.alias = self.alias, self.alias or mark
            value = self.plain(node.target, document, path, key, mark)
            self.alias = outer
            return value
        document.places[path] = Place(self.where(key), self.where(mark), _dotted(path))
        if len(path) > MAX_DEPTH:
            self.stop(mark, f"nested more than {MAX_DEPTH} deep")
        if node.items is not None:
            return [self.plain(n, document, (*path, i), n.mark) for i, n in enumerate(node.items)]
        if node.pairs is not None:
            return {k: self.plain(n, document, (*path, k), at) for k, (at, n) in node.pairs.items()}
        return node.scalar


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _syntax(error: MarkedYAMLError) -> str:
    """The library's sentence, with what to do about the mistakes people make most."""
    text = " ".join(str(p) for p in (error.context, error.problem) if p)
    for sign, remedy in _REMEDIES.items():
        if sign in text:
            return f"not YAML: {text}; {remedy}"
    return f"not YAML: {text}"


_REMEDIES = {
    r"character '\t'": "indent with spaces, not with tabs",
    "that cannot start any token": "put the text in quotes",
    "mapping values are not allowed here": "check the indentation, or put a text with ': ' in quotes",
    "<block end>": "check the indentation of this line against the ones above",
    "could not find expected ':'": "a key is followed by ': '",
    "<stream end>": "a bracket or a brace is not closed",
    "unexpected end of stream": "a quote is not closed",
}


def _mark(event: Event) -> Mark:
    return (event.start_mark.line + 1, event.start_mark.column + 1)


def _others(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; neither does the folder {path.parent}"
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    stems = {Path(name).stem: name for name in names}  # the suffix, which all have, makes no two names alike
    close = nearest(path.stem, stems)
    if close:
        return f"; did you mean {path.with_name(stems[close])}?"
    return f"; {path.parent} has {listed(names)}" if names else "; `deploycompress init` writes one"
