"""What the keys of a configuration mean: the comments that stand beside them in the source."""

from __future__ import annotations

import ast
import functools
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Key -> the comment on the lines of its definition; keys without one are left out."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if issubclass(cls, BaseModel) and cls is not BaseModel and file is not None:
            found |= _in_file(file).get(cls.__qualname__, {})
    return found


@functools.cache
def _in_file(file: str) -> dict[str, dict[str, str]]:
    """Qualified name of every class -> its keys' comments; nothing for a file without source."""
    try:
        source = Path(file).read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return {}
    by_line = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith(("# type:", "# noqa"))
    }
    return {
        name: {
            statement.target.id: comment
            for statement in cls.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            if (comment := _of(statement, by_line))
        }
        for name, cls in _classes(tree.body, "")
    }


def _of(statement: ast.stmt, by_line: dict[int, str]) -> str:
    lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    return " ".join(by_line[line] for line in lines if line in by_line)


def _classes(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield prefix + statement.name, statement
            yield from _classes(statement.body, f"{prefix}{statement.name}.")
