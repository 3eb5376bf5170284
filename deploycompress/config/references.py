"""Names of user code, ``module:function`` and ``path/file.py:function``: found without importing, or imported."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploycompress import registry
from deploycompress.config.wording import listed, nearest

LIBRARIES = {"torchvision": "vision", "timm": "vision"}  # prefix -> the extra that installs it
FORMS = "module:function or path/to/file.py:function"


class NotFound(LookupError):
    """Why a reference cannot be found, in one sentence."""


@dataclass(frozen=True)
class Located:
    """What a reference names, as far as the source text tells."""

    file: Path | None  # None: compiled or built in
    kind: Literal["function", "class", "unknown"]


def locate(reference: str, search_path: Sequence[Path], *, libraries: bool = True) -> str | None:
    """Why ``reference`` cannot be found, or None when it can; imports nothing.

    ``libraries``: whether ``torchvision:NAME`` and ``timm:NAME`` are allowed here too (models only).
    """
    try:
        find(reference, search_path, libraries=libraries)
    except NotFound as error:
        return str(error)
    return None


def find(reference: str, search_path: Sequence[Path], *, libraries: bool = False) -> Located:
    """The file and the kind of what ``reference`` names; imports nothing. Raises NotFound."""
    place, separator, name = reference.rpartition(":")
    if libraries and place in LIBRARIES:
        if importlib.util.find_spec(place) is None:
            raise NotFound(f"{place} is not installed: pip install 'deploycompress[{LIBRARIES[place]}]'")
        if not registry.OF_LIBRARIES.fullmatch(reference):
            raise NotFound(f"{name!r} is not the name of a model of {place}")
        return Located(None, "unknown")
    if not separator or not place or not name:
        also = ", or torchvision:NAME or timm:NAME" if libraries else ""
        raise NotFound(f"not of the form {FORMS}{also}")
    if not name.isidentifier():
        raise NotFound(f"{name!r} is not the name of a function or class; expected {FORMS}")
    file = _file(place, search_path) if place.endswith(".py") else _module(place, search_path)
    if file is None or file.suffix != ".py":
        return Located(None, "unknown")
    return Located(file, _kind(file, place, name))


def load(reference: str, search_path: Sequence[Path]) -> Any:
    """Import what ``reference`` names, with ``search_path`` first on sys.path, as for a script there.

    Raises ConfigError.
    """
    registry.add_to_path(str(p) for p in search_path)
    return registry.load_reference(absolute(reference, search_path))


def absolute(reference: str, search_path: Sequence[Path]) -> str:
    """``path/to/file.py:function`` with the file's absolute path; any other reference as it is."""
    place, separator, name = reference.rpartition(":")
    if not separator or not place.endswith(".py"):
        return reference
    for folder in search_path:
        if os.path.isfile(folder / place):
            return f"{(folder / place).resolve()}:{name}"
    return reference


# ---------------------------------------------------------------- the file of a module


def _file(place: str, search_path: Sequence[Path]) -> Path:
    for folder in search_path:
        if os.path.isfile(folder / place):
            return (folder / place).resolve()
    looked = " or ".join(str(p) for p in search_path) if not Path(place).is_absolute() else ""
    around = [folder / Path(place).parent for folder in search_path]
    names = [p.name for folder in around if os.path.isdir(folder) for p in folder.glob("*.py")]
    close = nearest(Path(place).name, names)
    raise NotFound(
        f"the file {place} does not exist"
        + (f"; did you mean {Path(place).with_name(close)}?" if close else "")
        + (f" Looked in {looked}" if close and looked else f"; looked in {looked}" if looked else "")
    )


def _module(name: str, search_path: Sequence[Path]) -> Path | None:
    """The source file of a module, found part by part. Raises NotFound with the part that is missing."""
    first, *rest = name.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        raise NotFound(f"{name!r} is not a module's name; expected {FORMS}")
    file, folders = _top(first, search_path)
    known = first
    for part in rest:
        if not folders:
            raise NotFound(f"{known} is a module, not a package; it has no {part!r}")
        found = _in_folders(part, folders)
        if found is None:
            raise NotFound(_missing(part, known, folders))
        file, folders = found
        known = f"{known}.{part}"
    if file is None and folders:
        modules = sorted({p.stem for folder in folders for p in folder.glob("*.py")})
        raise NotFound(f"{name} is a folder, not a module; name a module in it: {listed(modules) or 'none'}")
    return file


Place = tuple[Path | None, list[Path]]  # a module's file; the folders of a package


def _top(name: str, search_path: Sequence[Path]) -> Place:
    found = _in_folders(name, search_path)
    if found is not None and found[0] is not None:
        return found
    try:
        spec = importlib.util.find_spec(name)  # of a top-level name: executes nothing
    except ValueError:  # __main__ and the like have no spec
        spec = None
    if spec is not None:
        origin = Path(spec.origin) if spec.has_location and spec.origin else None
        return origin, [Path(p) for p in spec.submodule_search_locations or ()]
    if found is not None:
        return found
    raise NotFound(_missing(name, "", search_path))


def _in_folders(name: str, folders: Sequence[Path]) -> Place | None:
    """As the import system does: a package, else a module, else folders without ``__init__.py``."""
    namespace: list[Path] = []
    for folder in folders:
        if os.path.isfile(folder / name / "__init__.py"):
            return folder / name / "__init__.py", [folder / name]
        if os.path.isfile(folder / f"{name}.py"):
            return folder / f"{name}.py", []
        compiled = next(folder.glob(f"{name}.*.so"), None)
        if compiled is not None:
            return compiled, []
        if os.path.isdir(folder / name):
            namespace.append(folder / name)
    return (None, namespace) if namespace else None


def _missing(name: str, package: str, folders: Sequence[Path]) -> str:
    names = [
        p.stem
        for folder in folders
        if folder.is_dir()
        for p in folder.iterdir()
        if (p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))) and p.stem.isidentifier()
    ]
    close = nearest(name, [n for n in names if n != "__init__"])
    question = f"; did you mean {close!r}?" if close else ""
    if package:
        return f"the package {package} has no module {name!r}{question}"
    looked = " and ".join(str(p) for p in folders)
    return f"no module named {name!r}{question or ';'} looked in {looked} and in the installed packages"


# ---------------------------------------------------------------- the names in a file


def _kind(file: Path, place: str, name: str) -> Literal["function", "class", "unknown"]:
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        where = f"{file}:{error.lineno}" if error.lineno else str(file)
        raise NotFound(f"{where} has a syntax error: {error.msg}") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise NotFound(f"{file} cannot be read: {error}") from error
    defined = dict(_names(tree.body))
    if name in defined:
        return defined[name]
    if "*" in defined or "__getattr__" in defined:
        return "unknown"
    public = [n for n, kind in defined.items() if kind != "unknown" and not n.startswith("_")]
    close = nearest(name, public or defined)
    remedy = f"did you mean {close!r}?" if close else f"it has {listed(public)}" if public else "it is empty"
    raise NotFound(f"{place} has no {name!r}; {remedy}")


def _names(body: Sequence[ast.stmt]) -> Iterator[tuple[str, Literal["function", "class", "unknown"]]]:
    """Names a module's text binds at its top level, inside ``if``, ``try`` and ``with`` too."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield statement.name, "function"
            case ast.ClassDef():
                yield statement.name, "class"
            case ast.Import() | ast.ImportFrom():
                for alias in statement.names:
                    yield (alias.asname or alias.name).partition(".")[0], "unknown"
            case ast.Assign() | ast.AnnAssign() | ast.For():
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                for node in (n for target in targets for n in ast.walk(target)):
                    if isinstance(node, ast.Name):
                        yield node.id, "unknown"
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _names(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", []):
            yield from _names(handler.body)
