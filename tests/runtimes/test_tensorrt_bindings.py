"""Every name that our code takes from TensorRT, against the real bindings of 10.16 and 11.4.

``read_tensorrt_bindings.py`` wrote the names and signatures down; neither a GPU nor TensorRT is needed here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploycompress.runtimes import tensorrt

DATA = Path(__file__).resolve().parents[1] / "data"
VERSIONS = sorted(DATA.glob("tensorrt_*.json"))
# What our variables hold. A variable that is none of these, and is used like an object of TensorRT's, fails the test.
HOLDS = {
    "trt": "",
    "tensorrt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "e": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "inspector": "EngineInspector",
}
# Calls of TensorRT's that give one of these, so that a new variable does not go unseen.
GIVES = re.compile(r"^(create_|deserialize_|build_serialized|Builder$|Runtime$|OnnxParser$|get_error$)")
OURS = {"self._trt"}  # the module, kept


def tree() -> ast.Module:
    return ast.parse(Path(tensorrt.__file__).read_text(encoding="utf-8"))


def uses() -> Iterator[tuple[str, list[str], ast.AST]]:
    """Each use: what it is taken from, the names one behind the other, and the expression."""
    for node in ast.walk(tree()):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
            for length in (2, 1):
                owner = ".".join(parts[:length])
                if owner in HOLDS and len(parts) > length and all(part.isidentifier() for part in parts):
                    yield owner, parts[length:], node
                    break


def test_both_versions_were_read() -> None:
    assert [json.loads(path.read_text())["version"].split(".")[:2] for path in VERSIONS] == [
        ["10", "16"],
        ["11", "4"],
    ]


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_every_name_is_there(path: Path) -> None:
    known = json.loads(path.read_text())
    seen = 0
    for owner, names, node in uses():
        kind = HOLDS[owner]
        if kind == "":
            if names[0] == "__version__":
                continue
            assert names[0] in known["module"], f"line {node.lineno}: tensorrt.{names[0]}"
            if len(names) > 1 and names[0] in known["classes"]:
                assert names[1] in known["classes"][names[0]], f"line {node.lineno}: {'.'.join(names)}"
        else:
            assert names[0] in known["classes"][kind], f"line {node.lineno}: {kind}.{names[0]}"
        seen += 1
    assert seen > 40


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_every_call_has_as_many_arguments_as_one_signature_takes(path: Path) -> None:
    known = json.loads(path.read_text())
    checked = 0
    for node in ast.walk(tree()):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        kind = HOLDS.get(owner)
        if kind is None:
            continue
        members = known["classes"].get(kind, {}) if kind else known["classes"].get(name, {})
        signatures = members.get(name if kind else "__init__", [])
        if signatures:
            given = len(node.args) + len(node.keywords)
            assert any(least <= given <= most for least, most in map(_arguments, signatures)), (
                f"line {node.lineno}: {ast.unparse(node)}; {signatures}"
            )
            checked += 1
    assert checked > 15


def _arguments(signature: str) -> tuple[int, int]:
    """The least and the most that it takes, without ``self``."""
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    depth, parts, start = 0, [], 0
    for place, character in enumerate(inside):
        depth += character in "[({"
        depth -= character in "])}"
        if character == "," and not depth:
            parts.append(inside[start:place])
            start = place + 1
    parts = [part.strip() for part in (*parts, inside[start:]) if part.strip()]
    parts = [part for part in parts if not part.startswith("self")]
    return sum("=" not in part for part in parts), len(parts)


def test_no_object_of_tensorrts_goes_unseen() -> None:
    for node in ast.walk(tree()):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            function = node.value.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            if GIVES.match(name):
                (target,) = node.targets
                known = {*HOLDS, "serialized"}
                assert ast.unparse(target) in known, f"line {node.lineno}: {ast.unparse(node)}"


def test_what_only_one_of_the_versions_has_is_asked_for_first() -> None:
    """BuilderFlag.FP16 is in 10 and not in 11: nothing of the kind may be in our code."""
    ten, eleven = (json.loads(path.read_text()) for path in VERSIONS)
    gone = set(ten["classes"]["BuilderFlag"]) - set(eleven["classes"]["BuilderFlag"])
    assert {"FP16", "INT8"} <= gone
    text = Path(tensorrt.__file__).read_text(encoding="utf-8")
    assert not [name for name in gone if f"BuilderFlag.{name}" in text]
