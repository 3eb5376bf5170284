"""One block of a document against its model: every mistake in it, in plain words and with its place."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from deploycompress.config.devices import HOST, SERIAL, TEXT
from deploycompress.config.document import Document, KeyPath
from deploycompress.config.schema import COMPETITOR, DIMENSION, NAME, STEP_ID
from deploycompress.config.wording import listed, nearest, shown, unknown

M = TypeVar("M", bound=BaseModel)

WORDS = {
    NAME: "letters, digits, '.', '_' and '-', beginning with a letter or a digit",
    DIMENSION: "the name of a dynamic dimension",
    HOST: "user@host, a host, or a name of ~/.ssh/config",
    SERIAL: "a serial as `adb devices` shows it",
    TEXT: "a path or a command, in one line and not beginning with '-'",
    COMPETITOR: "letters, digits, '_' and '-', beginning with a letter",
    STEP_ID: "letters, digits, '_' and '-', beginning with a letter or a digit",
}
# pydantic's kinds of error begin with the type that was expected
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "none": "null",
    **dict.fromkeys(("model", "dict", "mapping", "dataclass"), "a mapping"),
    **dict.fromkeys(("list", "tuple", "set", "frozen", "iterable"), "a list"),
}
LIMITS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda c: f"a number above {c['gt']:g}",
    "greater_than_equal": lambda c: f"a number of at least {c['ge']:g}",
    "less_than": lambda c: f"a number below {c['lt']:g}",
    "less_than_equal": lambda c: f"a number of at most {c['le']:g}",
    "multiple_of": lambda c: f"a multiple of {c['multiple_of']:g}",
    "too_short": lambda c: f"at least {c['min_length']} of them",
    "too_long": lambda c: f"at most {c['max_length']} of them",
    "string_too_short": lambda c: f"text of at least {c['min_length']} characters",
    "string_too_long": lambda c: f"text of at most {c['max_length']} characters",
    "string_pattern_mismatch": lambda c: WORDS.get(c["pattern"], f"text of the form {c['pattern']}"),
    "literal_error": lambda c: str(c["expected"]).replace("'", ""),
}


@dataclass(frozen=True)
class Mistake:
    path: KeyPath  # within the block
    message: str
    kind: str  # pydantic's, or "mistyped"
    key: bool = False  # whether it is about the key and not about the value
    meant: str = ""  # the key that an unknown one was probably meant to be, or to stand in


def validate(model: type[M], document: Document, path: KeyPath, also: Sequence[str] = ()) -> M | None:
    """The block at ``path`` as a ``model``; None after its mistakes were noted in ``document``.

    ``also``: keys that are known here besides the model's own.
    """
    data = document.value(path)
    found = mistakes(model, data, also)
    for mistake in found:
        document.report((*path, *mistake.path), mistake.message, key=mistake.key)
    return None if found else model.model_validate(data)


def mistakes(model: type[BaseModel], data: Any, also: Sequence[str] = ()) -> list[Mistake]:
    """Everything in ``data`` that ``model`` does not take."""
    groups: dict[KeyPath, list[Mapping[str, Any]]] = {}
    try:
        model.model_validate(data)
    except ValidationError as error:
        for entry in error.errors(include_url=False):
            groups.setdefault(_path(data, entry), []).append(entry)
    found = _one_for_two([_mistake(model, path, entries, also) for path, entries in groups.items()])
    # pydantic takes '5' for 5 and true for 1; a configuration should say what it means.
    found += [m for m in _mistyped(model, data, ()) if m.path not in groups]
    return found


# ---------------------------------------------------------------- pydantic's errors


def _path(data: Any, entry: Mapping[str, Any]) -> KeyPath:
    """The error's place in the data: without the names of union members that pydantic puts in between."""
    path: list[str | int] = []
    parts = entry["loc"]
    for index, part in enumerate(parts):
        inside = part in data if isinstance(data, dict) else False
        if isinstance(data, list) and isinstance(part, int):
            inside = part < len(data)
        if inside:
            data = data[part]
            path.append(part)
        elif entry["type"] in ("missing", "extra_forbidden") and index == len(parts) - 1:
            path += [part] if isinstance(part, str) else []  # a missing item is a mistake of the list
    return tuple(path)


def _mistake(
    model: type[BaseModel], path: KeyPath, entries: Sequence[Mapping[str, Any]], also: Sequence[str]
) -> Mistake:
    """One sentence for all errors at one place: several when it is a union."""
    entry = entries[0]
    kind, received = entry["type"], entry["input"]
    if kind == "missing" and isinstance(entry["loc"][-1], int):
        count = max(e["loc"][-1] for e in entries) + 1
        return Mistake(path, f"received {shown(received)}, expected {count} of them", kind)
    if kind == "missing":
        field = _fields(model, path[:-1]).get(str(path[-1]))
        meaning = field.description if field is not None and field.description else ""
        hint = f": {meaning[0].lower()}{meaning[1:]}" if meaning else ""
        return Mistake(path, f"the key {str(path[-1])!r} is missing{hint}", kind, key=True)
    if kind == "extra_forbidden":
        return _unknown_key(model, path, also)
    if kind in ("value_error", "assertion_error"):
        reason = str(entry["ctx"]["error"])
        # A check of a whole mapping speaks of its keys itself.
        words = reason if isinstance(received, (dict, BaseModel)) else f"received {shown(received)}: {reason}"
        return Mistake(path, words, kind)
    expected = listed(dict.fromkeys(map(_expected, entries)), last="or")
    if expected == "a mapping":
        expected += _keys(_fields(model, path))
    question = ""
    if kind == "literal_error" and isinstance(received, str):
        close = nearest(received, re.findall(r"'([^']*)'", entry["ctx"]["expected"]))
        question = f"; did you mean {close!r}?" if close else ""
    return Mistake(path, f"received {shown(received)}, expected {expected}{question}", kind)


def _expected(entry: Mapping[str, Any]) -> str:
    kind = str(entry["type"])
    if kind in LIMITS:
        return LIMITS[kind](entry["ctx"])
    message = str(entry["msg"])
    message = message.removeprefix("Input should be ")
    return TYPES.get(kind.partition("_")[0], message[:1].lower() + message[1:])


def _keys(fields: Mapping[str, Any]) -> str:
    """The keys of an expected mapping: the required ones, else all."""
    required = [name for name, field in fields.items() if field.is_required()]
    if required:
        return ", as {" + ", ".join(f"{name}: ..." for name in required) + "}"
    return f" with {listed(fields, last='or')}" if fields else ""


def _unknown_key(model: type[BaseModel], path: KeyPath, also: Sequence[str]) -> Mistake:
    name = str(path[-1])
    fields = _fields(model, path[:-1])
    known = [*fields, *(also if len(path) == 1 else ())]
    meant = nearest(name, known) or ""
    message = unknown("key", name, known)
    for outer in fields if not meant else ():
        if name in _fields(model, (*path[:-1], outer)):
            meant = outer
            message = f"unknown key {name!r}; it belongs into {outer!r}: {{{outer}: {{{name}: ...}}}}"
    return Mistake(path, message, "extra_forbidden", key=True, meant=meant)


def _one_for_two(found: list[Mistake]) -> list[Mistake]:
    """Without the missing keys that an unknown key was meant to be: that is one mistake and not two."""
    meant = {(*m.path[:-1], m.meant) for m in found if m.meant}
    return [m for m in found if m.kind != "missing" or m.path not in meant]


# ---------------------------------------------------------------- what a model takes


def _members(annotation: Any) -> Iterator[Any]:
    """The types of a union, without None and without annotations; any other type is its own."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation is not type(None):
        yield annotation


def _fields(model: Any, path: KeyPath) -> dict[str, Any]:
    """The fields that the mapping at ``path`` may have, by the names they have in YAML."""
    inner = [model]
    for part in path:
        inner = [deeper for annotation in inner for deeper in _inside(annotation, part)]
    return {
        field.alias or name: field
        for annotation in inner
        for member in _members(annotation)
        if isinstance(member, type) and issubclass(member, BaseModel)
        for name, field in member.model_fields.items()
        if not field.exclude  # what is written elsewhere
    }


def _inside(annotation: Any, part: str | int) -> Iterator[Any]:
    """The annotations of what stands at the key, or the index, ``part``."""
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                if part in (name, field.alias):
                    yield field.annotation
        elif isinstance(part, int):
            arguments = [a for a in get_args(member) if a is not Ellipsis]
            if get_origin(member) in (list, tuple, set, frozenset, Sequence) and arguments:
                yield arguments[min(part, len(arguments) - 1)]
        elif get_origin(member) in (dict, Mapping):
            yield get_args(member)[1]


def _mistyped(annotation: Any, data: Any, path: KeyPath) -> Iterator[Mistake]:
    """Text where a number or a boolean is due, true or false where a number is due, and the reverse."""
    entries: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(data, dict):
        entries = iter(data.items())
    elif isinstance(data, list):
        entries = iter(enumerate(data))
    elif data is not None:
        message = _wrong_type(set(_members(annotation)), data)
        if message:
            yield Mistake(path, message, "mistyped")
    for part, value in entries:
        for inner in _inside(annotation, part):
            yield from _mistyped(inner, value, (*path, part))


def _wrong_type(due: set[Any], data: Any) -> str:
    """What is wrong with a single value where one of the types ``due`` is expected; "" when nothing is."""
    literals = [value for kind in due if get_origin(kind) is Literal for value in get_args(kind)]
    due = {kind for kind in due if get_origin(kind) is not Literal}
    if any(data == value and type(data) is type(value) for value in literals):
        return ""
    if isinstance(data, bool):
        wrong = bool not in due and due <= {int, float, str}
    else:
        wrong = due == {bool} or (isinstance(data, str) and due <= {int, float, bool})
    if not due or not wrong:
        return ""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    expected = listed(
        [*map(str, literals), *(words for kind, words in names.items() if kind in due)], last="or"
    )
    return f"received {shown(data)}, expected {expected}"
