"""``module:function`` is found without importing anything; what is missing is named, with the nearest name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from deploycompress.config import references
from deploycompress.config.references import NotFound, absolute, find, locate
from deploycompress.errors import ConfigError

SOURCE = """
raise SystemExit("imported")

import functools
from pathlib import Path as Folder
try:
    import torch
except ImportError:
    torch = None
if True:
    def inside(): ...
with open("x"):
    within = 1

def build(width=32): ...
async def fetch(): ...
class Net: ...
make = functools.partial(build, 3)
first, (second, *rest) = 1, (2, 3)
typed: int = 3
_private = 1
"""


@pytest.fixture
def project(folder: Path) -> Path:
    (folder / "models.py").write_text(SOURCE)
    package = folder / "shapes"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit\ndef build(): ...\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "net.py").write_text("def build(): ...\n")
    (folder / "loose").mkdir()
    (folder / "loose" / "one.py").write_text("def build(): ...\n")
    (folder / "star.py").write_text("from models import *\n")
    (folder / "lazy.py").write_text("def __getattr__(name): ...\n")
    (folder / "broken.py").write_text("x = 1\ndef build(:\n")
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    return folder


@pytest.mark.parametrize(
    "reference",
    [
        "models:build", "models:fetch", "models:Net", "models:make", "models:inside", "models:within", "models:second",
        "models:rest", "models:typed", "models:torch", "models:Folder", "models:_private", "models.py:build",
        "./models.py:build", "shapes:build", "shapes.deep.net:build", "loose.one:build", "loose/one.py:build",
        "star:anything", "lazy:anything", "collections:OrderedDict", "math:sqrt", "sys:path",
        "deploycompress.examples.resnet:build", "torch.nn:Linear",
    ],
)  # fmt: skip
def test_found_and_not_imported(project: Path, reference: str) -> None:
    before = set(sys.modules)
    assert locate(reference, [project]) is None
    assert {
        m for m in set(sys.modules) - before if m.split(".")[0] in ("models", "shapes", "loose", "star")
    } == set()


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("models:biuld", "models has no 'biuld'; did you mean 'build'?"),
        ("models.py:Nett", "models.py has no 'Nett'; did you mean 'Net'?"),
        ("models:zzz", "models has no 'zzz'; it has inside, build, fetch, Net"),
        ("model:build", "no module named 'model'; did you mean 'models'? looked in "),
        ("zzzz:build", "no module named 'zzzz'; looked in "),
        ("shapes.dep:build", "the package shapes has no module 'dep'; did you mean 'deep'?"),
        ("shapes.deep.nat:build", "the package shapes.deep has no module 'nat'; did you mean 'net'?"),
        ("models.net:build", "models is a module, not a package; it has no 'net'"),
        ("loose:build", "loose is a folder, not a module; name a module in it: one"),
        ("model.py:build", "the file model.py does not exist; did you mean models.py? Looked in "),
        ("nets/a.py:build", "the file nets/a.py does not exist; looked in "),
        ("broken:build", "broken.py:2 has a syntax error: "),
        ("latin.py:x", "latin.py"),
        (
            "models",
            "not of the form module:function or path/to/file.py:function, or torchvision:NAME or timm:NAME",
        ),
        ("models:", "not of the form"),
        (":build", "not of the form"),
        ("models:Net.build", "'Net.build' is not the name of a function or class"),
        ("my-models:build", "'my-models' is not a module's name; expected module:function or path"),
        ("collections.abd:Mapping", "the package collections has no module 'abd'; did you mean 'abc'?"),
        ("deploycompress.examples.resnet:bild", "did you mean 'build'?"),
    ],
)
def test_missing_with_the_nearest_name(project: Path, reference: str, reason: str) -> None:
    message = locate(reference, [project])
    assert message is not None and reason in message


def test_the_projects_own_module_comes_before_an_installed_one(project: Path) -> None:
    (project / "colorsys.py").write_text("def mine(): ...\n")
    assert locate("colorsys:mine", [project]) is None
    assert locate("colorsys:mine", []) is not None


def test_libraries_by_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    assert locate("torchvision:no_such_model", []) is None  # which names there are is seen when it is built
    assert "is not the name of a model of timm" in str(locate("timm:x\x1b[2J", []))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else real(name))
    assert locate("timm:resnet18", []) == "timm is not installed: pip install 'deploycompress[vision]'"
    assert "torchvision has no 'resnet18x'" in str(locate("torchvision:resnet18x", [], libraries=False))


def test_what_a_name_is(project: Path) -> None:
    assert find("models:build", [project]).kind == "function"
    assert find("models:Net", [project]).kind == "class"
    assert find("models:make", [project]).kind == "unknown"
    assert find("models:build", [project]).file == project / "models.py"
    with pytest.raises(NotFound):
        find("models:zzz", [project])


def test_files_become_absolute(project: Path) -> None:
    assert absolute("loose/one.py:build", [Path("/"), project]) == f"{project / 'loose' / 'one.py'}:build"
    assert absolute("models:build", [project]) == "models:build"
    assert absolute("nowhere.py:build", [project]) == "nowhere.py:build"


def test_load_imports_from_the_search_path(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (project / "loads_once.py").write_text("def build(): return 3\n")
    assert references.load("loads_once:build", [project])() == 3
    assert references.load("loose/one.py:build", [project]).__name__ == "build"
    with pytest.raises(ConfigError, match="importing broken failed: SyntaxError"):
        references.load("broken:build", [project])
