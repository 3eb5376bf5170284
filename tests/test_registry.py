"""The harness over every line of every table: it imports lightly, is of its kind, and documents itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploycompress import registry
from deploycompress.contracts import Stage
from deploycompress.errors import ConfigError

LINES = [(table, name) for table in registry.TABLES for name in table]

# What each kind of thing must offer, besides being documented.
OFFERS = {
    "stage": (
        "accepts",
        "produces",
        "version",
        "libraries",
        "compresses",
        "Config",
        "run",
        "ensures",
        "requires",
    ),
    "criterion": ("comparable", "needs_data", "__call__"),
    "allocation": ("__call__",),
    "loss": ("__call__",),
    "runtime": ("accepts", "missing", "open"),
    "compiler": ("missing", "recipes", "build"),
    "device": ("facts", "push", "start", "poll", "pull", "collect", "stop"),
    "task": ("primary", "check", "loss", "metrics"),
    "data source": ("Config", "files", "splits"),
}


@pytest.mark.parametrize(("table", "name"), LINES, ids=[f"{t.kind}-{n}" for t, n in LINES])
def test_every_line_is_what_its_table_promises(table, name):
    thing = table.load(name)
    assert thing.__doc__ and thing.__doc__.strip()
    assert sys.modules[thing.__module__].__doc__
    for attribute in OFFERS[table.kind]:
        assert hasattr(thing, attribute), f"{table.kind} {name} has no {attribute}"
    if table.kind == "stage":
        assert issubclass(thing, Stage)
        assert isinstance(thing.accepts, frozenset) and isinstance(thing.produces, frozenset)
        for field, info in thing.Config.model_fields.items():
            assert not info.is_required() or field == "target" or field == "precision", (
                f"{name}: {field} has no default"
            )


def test_no_line_imports_a_framework():
    code = (
        "import sys\n"
        "from deploycompress.registry import TABLES\n"
        "[table.load(name) for table in TABLES for name in table]\n"
        "print([m for m in ('torch', 'onnxruntime', 'onnx', 'torch_pruning', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown criterion 'taylr'; known: magnitude, .*or module:Name"):
        registry.CRITERIA.load("taylr")


def test_a_reference_that_does_not_import_says_why(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_is_not_there\n")
    with pytest.raises(
        ConfigError, match=r"ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    ):
        registry.load_reference(f"{broken}:build")
    with pytest.raises(ConfigError, match=r"has no 'buidl'"):
        registry.load_reference("deploycompress.errors:buidl")
    with pytest.raises(ConfigError, match="not of the form module:name"):
        registry.load_reference("deploycompress.errors")
