"""The simplifier is used where it helps, and never fails anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploycompress.graph import simplify
from deploycompress.graph.simplify import simplify_onnx


@pytest.fixture
def wasteful(tmp_path: Path) -> Path:
    """y = x + (1 + 1), where the sum of constants can go."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["one", "one"], ["two"]), helper.make_node("Add", ["x", "two"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    document.metadata_props.add(key="made", value="here")
    path = tmp_path / "wasteful.onnx"
    onnx.save(document, path)
    return path


FEEDS = [{"x": np.ones((batch, 3), np.float32)} for batch in (1, 4)]


def test_a_simpler_file_is_kept(wasteful: Path, tmp_path: Path) -> None:
    found = simplify_onnx(wasteful, tmp_path / "model.onnx", FEEDS)
    assert (found.tool, found.nodes_before, found.nodes_after, found.notes) == ("onnxsim", 2, 1, ())
    assert found.parity is not None and found.parity.relative == 0
    kept = {entry.key: entry.value for entry in onnx.load(found.path).metadata_props}
    assert kept == {"made": "here"}
    again = simplify_onnx(wasteful, tmp_path / "again.onnx", FEEDS)
    assert again.path.read_bytes() == found.path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.onnx", "model.onnx", "wasteful.onnx"]


def test_another_tool_where_the_first_is_not_to_be_used(wasteful, tmp_path, monkeypatch) -> None:
    document = onnx.load(wasteful)
    document.graph.node[1].input[1] = "nine"  # ... + 1, seven times more
    for number, name in enumerate(["three", "four", "five", "six", "seven", "eight", "nine"]):
        before = ["two", "three", "four", "five", "six", "seven", "eight"][number]
        document.graph.node.insert(number + 1, helper.make_node("Add", [before, "one"], [name]))
    onnx.save(document, wasteful)
    found = simplify_onnx(wasteful, tmp_path / "slim.onnx", FEEDS, ("onnxslim",))
    assert (found.tool, found.nodes_after, found.notes) == ("onnxslim", 1, ())
    again = simplify_onnx(wasteful, tmp_path / "again.onnx", FEEDS, ("onnxslim",))
    assert again.path.read_bytes() == found.path.read_bytes()
    broken = simplify.PROCESS.read_text().replace(
        "after, sound = onnxsim", "raise SystemExit('no'); after, sound = onnxsim"
    )
    (tmp_path / "process.py").write_text(broken)
    monkeypatch.setattr(simplify, "PROCESS", tmp_path / "process.py")
    found = simplify_onnx(wasteful, tmp_path / "second.onnx", FEEDS)
    assert found.tool == "onnxslim" and found.path.read_bytes() == again.path.read_bytes()
    (note,) = found.notes
    assert (note.kind, note.message) == (
        "fell_back",
        "the file was not simplified: onnxsim ended with code 1: no",
    )


def test_a_tool_that_is_not_installed_is_passed_over(wasteful, tmp_path) -> None:
    found = simplify_onnx(wasteful, tmp_path / "model.onnx", FEEDS, ("onnxnothing", "onnxsim"))
    assert (found.tool, found.notes) == ("onnxsim", ())
    found = simplify_onnx(wasteful, tmp_path / "none.onnx", FEEDS, ("onnxnothing",))
    assert found.tool == "" and "onnxnothing ended with code 1" in found.notes[0].message


def test_one_that_is_ready_is_used_once_and_ended(wasteful: Path, tmp_path: Path) -> None:
    with simplify.first_simplifier() as ready:
        assert ready is not None and ready._process.poll() is None
        found = simplify_onnx(wasteful, tmp_path / "model.onnx", FEEDS, ready=ready)
        assert found.tool == "onnxsim" and ready._process.returncode == 0
        assert simplify_onnx(wasteful, tmp_path / "again.onnx", FEEDS).tool == "onnxsim"
    with simplify.first_simplifier(("onnxslim",)) as unused:
        pass
    assert unused is not None and unused._process.returncode == -9
    with simplify.first_simplifier(()) as none:
        assert none is None


def test_none_copies(wasteful: Path, tmp_path: Path) -> None:
    found = simplify_onnx(wasteful, tmp_path / "model.onnx", FEEDS, ())
    assert (found.tool, found.notes) == ("", ())
    assert found.path.read_bytes() == wasteful.read_bytes()


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "onnxsim ended with code -11: no message"),
        ("raise SystemExit('no such operator')", "onnxsim ended with code 1: no such operator"),
        ("import time; time.sleep(60)", "onnxsim took more than 1 s"),
        (
            "import shutil; shutil.copy(SOURCE, MADE); open(MADE, 'ab').write(bytes([0x32, 1, 65]))",
            "onnxsim made it larger",
        ),
        ("open(MADE, 'wb').write(b'rubbish')", "is refused"),
        (
            "import onnx; m = onnx.load(SOURCE); m.graph.initializer[0].raw_data = bytes(4); onnx.save(m, MADE)",
            "of the largest output; it begins at node two (Add): 0 at [], expected 2",
        ),
    ],
)
def test_anything_else_keeps_the_source(
    wasteful: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str, reason: str
) -> None:
    (tmp_path / "process.py").write_text("import json; SOURCE, MADE = json.loads(input())\n" + process)
    monkeypatch.setattr(simplify, "PROCESS", tmp_path / "process.py")
    monkeypatch.setattr(simplify, "TIMEOUT_S", 1 if "sleep" in process else 60)
    found = simplify_onnx(wasteful, tmp_path / "model.onnx", FEEDS, ("onnxsim",))
    assert not found.tool and found.parity is None
    assert found.path.read_bytes() == wasteful.read_bytes()
    (note,) = found.notes
    assert note.kind == "fell_back" and reason in note.message
