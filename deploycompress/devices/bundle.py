"""Joins what travels to a device into single files: the runner with the runtimes of a job, and the agent."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from deploycompress.errors import ConfigError
from deploycompress.registry import RUNTIMES

PIECES = (
    "deploycompress.runtimes.onnx_file",
    "deploycompress.measure.control_groups",
    "deploycompress.devices.disturbance",
    "deploycompress.devices.counters",
    "deploycompress.devices.candidate",
    "deploycompress.devices.child",
    "deploycompress.devices.runner",
)


AGENT = (
    "deploycompress.measure.control_groups",
    "deploycompress.measure.environment",
    "deploycompress.devices.agent_jobs",
    "deploycompress.devices.agent",
)


@functools.cache
def agent() -> str:
    """The source of what keeps files and jobs on a device."""
    return _join(AGENT, "", "main()")


def bundle(*runtimes: str) -> str:
    """The source of the runner for these runtimes, each by its name in the registry or as ``module:Name``.

    Raises ConfigError when a runtime is not known, or its file cannot be joined: two files with one
    name at their top level, or an import of ours.
    """
    classes = {runtime: _reference(runtime) for runtime in runtimes}
    modules = dict.fromkeys(module for module, _ in classes.values())
    known = ", ".join(f"{runtime!r}: {name}" for runtime, (_, name) in classes.items())
    return _join(
        (PIECES[0], *modules, *PIECES[1:]),
        '"""A measuring job\'s runner, joined from several files; see deploycompress.devices.bundle."""\n',
        f'if __name__ == "__main__":\n    sys.exit(main(sys.argv[1:], check, {{{known}}}))\n',
    )


def _join(pieces: Sequence[str], beginning: str, end: str) -> str:
    imports: dict[str, None] = {}
    bodies: list[str] = []
    owners: dict[str, str] = {}
    for piece in pieces:
        source = _source(piece)
        tree = ast.parse(source)
        for defined in _defined(tree):
            if defined in owners:
                raise ConfigError(f"{piece} and {owners[defined]} both define {defined}; rename one of them")
            owners[defined] = piece
        imports.update(dict.fromkeys(_imports(tree, piece, pieces)))
        bodies.append(f"# {'-' * 64} {piece}\n\n\n{_body(source, tree)}")
    return "\n".join(
        (beginning, "from __future__ import annotations\n", *sorted(imports), "", *bodies, "", end)
    )


def _reference(runtime: str) -> tuple[str, str]:
    """The module of a runtime, and its name there."""
    module, separator, name = RUNTIMES.get(runtime, runtime).rpartition(":")
    if not separator:
        raise ConfigError(f"unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}, or module:Name")
    return module, name


def _source(module: str) -> str:
    """Of a module, or of a user's file by its path."""
    if module.endswith(".py"):
        try:
            return Path(module).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the file {module} cannot be read: {error.strerror}") from error
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"the module {module} is not to be found")
    return Path(spec.origin).read_text(encoding="utf-8")


def _imports(tree: ast.Module, piece: str, pieces: Sequence[str]) -> list[str]:
    """The import lines at the top level, without those of the other pieces."""
    found = []
    for node in tree.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        where = node.module if isinstance(node, ast.ImportFrom) else None
        if where in pieces or where == "__future__":
            continue
        if str(where).startswith("deploycompress") or "deploycompress" in ast.unparse(node):
            raise ConfigError(f"{piece} travels to devices and must not import {where or ast.unparse(node)}")
        found.append(ast.unparse(node))
    return found


def _defined(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.extend(n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
    return names


def _body(source: str, tree: ast.Module) -> str:
    """The text of a file without its docstring and its imports."""
    lines: list[str | None] = list(source.splitlines())
    for number, node in enumerate(tree.body):
        docstring = number == 0 and isinstance(node, ast.Expr)
        if docstring or isinstance(node, (ast.Import, ast.ImportFrom)):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line is not None).strip() + "\n\n"
