"""One layer writes: what it promises, and that nothing in the package goes around it."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest

from deploycompress import writing
from deploycompress.devices.bundle import AGENT, PIECES
from deploycompress.errors import EnvironmentMissing, of_system
from deploycompress.registry import RUNTIMES

PACKAGE = Path(writing.__file__).parent
TRAVELS = {f"{name.removeprefix('deploycompress.').replace('.', '/')}.py" for name in (*AGENT, *PIECES)}
TRAVELS |= {f"{path.parent.name}/{path.name}" for path in (PACKAGE / "runtimes").glob("*.py")}
LAYER = {"writing.py", "crash_points.py"}
LOCKS = "engine/locks.py"  # a lock has no contents
APART = "graph/simplifier.py"  # a program of its own that imports nothing of ours; its caller is inside ``saving``

# What changes files by its name, of a module or of a path.
FUNCTIONS = {
    "os": {"replace", "rename", "renames", "unlink", "remove", "rmdir", "removedirs", "link", "symlink", "truncate"},
    "shutil": {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rmtree"},
    "json": {"dump"},
    "pickle": {"dump"},
}  # fmt: skip
METHODS = {
    "write_text",
    "write_bytes",
    "rename",
    "unlink",
    "rmdir",
    "touch",
    "symlink_to",
    "hardlink_to",
    "tofile",
}
# What lets a library write; allowed inside ``saving``.
SAVERS = {"save_file", "save_model", "savez", "savez_compressed", "quantize_static", "quantize_dynamic"}
SAVING_MODULES = {"onnx", "onnx_ir", "np", "numpy", "torch"}  # of a function named ``save``


class Around(ast.NodeVisitor):
    """Finds calls that write without the layer; ``inside`` counts the ``saving`` blocks around."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        self.inside = 0

    def visit_With(self, node: ast.With) -> None:
        opened = 0
        for item in node.items:
            self.visit(item.context_expr)
            if isinstance(item.context_expr, ast.Call) and _name(item.context_expr.func)[1] == "saving":
                self.inside, opened = self.inside + 1, opened + 1
        for statement in node.body:
            self.visit(statement)
        self.inside -= opened

    def visit_Call(self, node: ast.Call) -> None:
        owner, name = _name(node.func)
        if name in FUNCTIONS.get(owner, ()) or (owner and name in METHODS and owner != "writing"):
            self.found.append((node.lineno, f"{owner}.{name}"))
        if owner and name == "replace" and len(node.args) == 1 and not node.keywords:
            self.found.append((node.lineno, "Path.replace"))
        saves = name in SAVERS or (name == "save" and owner in SAVING_MODULES)
        if (saves or self._opens_to_write(name, owner, node)) and not self.inside:
            self.found.append((node.lineno, f"{owner}.{name} outside of saving"))
        self.generic_visit(node)

    @staticmethod
    def _opens_to_write(name: str, owner: str, node: ast.Call) -> bool:
        if owner == "os" and name == "open":
            return "O_CREAT" in ast.unparse(node) or "O_TRUNC" in ast.unparse(node)
        if name != "open":
            return False
        literals = [
            a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)
        ]
        modes = [v for v in literals if isinstance(v, str) and len(v) <= 4 and set(v) <= set("rwaxbt+")]
        return any(set(mode) & set("wax+") for mode in modes)


def _name(function: ast.expr) -> tuple[str, str]:
    """(what it is called on, its own name)."""
    if isinstance(function, ast.Attribute):
        return ast.unparse(function.value) or "?", function.attr
    return "", function.id if isinstance(function, ast.Name) else ""


def going_around(source: str) -> list[tuple[int, str]]:
    visitor = Around()
    visitor.visit(ast.parse(source))
    return visitor.found


def test_nothing_in_the_package_writes_without_the_layer():
    assert len(TRAVELS) >= 9 and len(RUNTIMES) >= 4
    around = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in TRAVELS | LAYER | {LOCKS, APART}:
            found = going_around(path.read_text(encoding="utf-8"))
            around |= {f"{name}:{line}": what for line, what in found}
    assert around == {}, "write through deploycompress.writing"


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w').write('x')",
        "path.open(mode='ab')",
        "path.write_text('x')",
        "os.replace(a, b)",
        "a.replace(b)",
        "folder.rename(other)",
        "shutil.copytree(a, b)",
        "json.dump(x, stream)",
        "onnx.save(model, path)",
        "save_file(tensors, path)",
        "np.savez(path, **arrays)",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "path.unlink()",
    ],
)
def test_the_rule_sees_what_goes_around(line):
    assert len(going_around(line)) == 1


def test_the_rule_lets_through_what_reads_and_what_is_saved():
    allowed = """
path.open("rb"); open(path); text.replace("a", "b"); artifact.replace; np.load(path); checkpoint.save(module, folder)
with saving(path):
    onnx.save(model, path)
"""
    assert going_around(allowed) == []


def test_a_folder_without_room_for_its_copy_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the system's own words, which ``errors.of_system`` knows; shutil's copy of a tree has others."""
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (source / name).write_text(name)
    whole = writing.copy(source, tmp_path / "whole")
    assert sorted(p.relative_to(whole).as_posix() for p in whole.rglob("*")) == ["a", "deep", "deep/b"]
    copyfile = writing.shutil.copyfile

    def full(given: Path, place: Path) -> None:
        if place.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device", str(place))
        copyfile(given, place)

    monkeypatch.setattr(writing.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left on device") as refused:
        writing.copy(source, tmp_path / "copy")
    said = of_system(refused.value)
    assert isinstance(said, EnvironmentMissing) and "no room to write" in str(said)
