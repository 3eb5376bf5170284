"""Joins the runner, the ONNX reader and the runtimes of a job into the single file that travels to a device."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from deploycompress.errors import ConfigError
from deploycompress.registry import RUNTIMES

PIECES = (
    "deploycompress.runtimes.onnx_file",
    "deploycompress.devices.candidate",
    "deploycompress.devices.runner",
)


def bundle(*runtimes: str) -> str:
    """The source of the runner for these runtimes, each by its name in the registry or as ``module:Name``.

    Raises ConfigError when a runtime is not known, or its file cannot be joined: two files with one
    name at their top level, or an import of ours.
    """
    classes = {runtime: _reference(runtime) for runtime in runtimes}
    modules = dict.fromkeys(module for module, _ in classes.values())
    imports: dict[str, None] = {}
    bodies: list[str] = []
    owners: dict[str, str] = {}
    for piece in (PIECES[0], *modules, *PIECES[1:]):
        source = _source(piece)
        tree = ast.parse(source)
        for defined in _defined(tree):
            if defined in owners:
                raise ConfigError(f"{piece} and {owners[defined]} both define {defined}; rename one of them")
            owners[defined] = piece
        imports.update(dict.fromkeys(_imports(tree, piece)))
        bodies.append(f"# {'-' * 64} {piece}\n\n\n{_body(source, tree)}")
    known = ", ".join(f"{runtime!r}: {name}" for runtime, (_, name) in classes.items())
    return "\n".join(
        (
            '"""A measuring job\'s runner, joined from several files; see deploycompress.devices.bundle."""\n',
            "from __future__ import annotations\n",
            *sorted(imports),
            "",
            *bodies,
            "",
            'if __name__ == "__main__":',
            f"    sys.exit(main(sys.argv[1:], check, {{{known}}}))",
            "",
        )
    )


def _reference(runtime: str) -> tuple[str, str]:
    """The module of a runtime, and its name there."""
    module, separator, name = RUNTIMES.get(runtime, runtime).rpartition(":")
    if not separator:
        raise ConfigError(f"unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}, or module:Name")
    return module, name


def _source(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"the module {module} is not to be found")
    return Path(spec.origin).read_text(encoding="utf-8")


def _imports(tree: ast.Module, piece: str) -> list[str]:
    """The import lines at the top level, without those of the other pieces."""
    found = []
    for node in tree.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        where = node.module if isinstance(node, ast.ImportFrom) else None
        if where in PIECES or where == "__future__":
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
