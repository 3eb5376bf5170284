"""The safe ONNX reader: what it tells, and what it refuses."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploycompress.runtimes import onnx_file

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def model(
    nodes: list[onnx.NodeProto] | None = None, *, weight: onnx.TensorProto | None = None, **more: object
) -> onnx.ModelProto:
    """x[batch, 3] @ w -> y[batch, 4], or the given nodes."""
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight or numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], **more)


def external(**entries: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", dims=[3, 4], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def saved(folder: Path, document: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(document.SerializeToString())
    return path


def test_tells_what_a_model_is(tmp_path: Path) -> None:
    document = model()
    document.metadata_props.add(key="made", value="here")
    assert onnx_file.check(saved(tmp_path, document)) == {
        "ir_version": document.ir_version,
        "opset": 18,
        "domains": {"": 18},
        "nodes": 1,
        "ops": {"MatMul": 1},
        "inputs": {"x": {"type": 1, "shape": ["batch", 3]}},
        "outputs": {"y": {"type": 1, "shape": ["batch", 4]}},
        "initializers": 1,
        "external": [],
        "metadata": {"made": "here"},
    }


def test_external_data_beside_the_model_are_fine(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"1234" + WEIGHT.tobytes())
    path = saved(tmp_path, model(weight=external(location="w.bin", offset="4", length="48")))
    assert onnx_file.check(path)["external"] == ["w.bin"]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "/etc/passwd"}, "is not a relative file name"),
        ({"location": "../w.bin"}, "leads outside the model's folder"),
        ({"location": "sub/../../w.bin"}, "leads outside the model's folder"),
        ({"location": "C:\\w.bin"}, "is not a relative file name"),
        ({"location": "absent.bin"}, "is missing"),
        ({"location": "sub"}, "is not a file"),
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096", "length": "48"}, "is an address in memory"),
        ({"location": "w.bin", "length": "48", "offset": "8"}, "ends at byte 56 of 'w.bin', which has 48"),
        ({"location": "w.bin", "length": "40"}, "has length 40, expected 48"),
        ({"location": "w.bin", "offset": "-1"}, "has the offset '-1', expected a byte count"),
        ({"location": "w.bin", "basepath": "/tmp"}, "unknown or double keys ['basepath']"),
        ({}, "is not a relative file name"),
    ],
)
def test_refuses_external_data(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="is refused: ") as caught:
        onnx_file.check(saved(tmp_path, model(weight=external(**entries))))
    assert reason in str(caught.value)


@pytest.mark.parametrize(("make", "reason"), [(os.symlink, "is a link"), (os.link, "is a hard link")])
def test_refuses_links(tmp_path: Path, make: object, reason: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    make(tmp_path / "secret", tmp_path / "w.bin")  # type: ignore[operator]
    with pytest.raises(ValueError, match=reason):
        onnx_file.check(saved(tmp_path, model(weight=external(location="w.bin"))))


def test_refuses_a_link_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "sub").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="is a link"):
        onnx_file.check(saved(tmp_path, model(weight=external(location="sub/w.bin"))))


def hidden_in_attribute() -> onnx.ModelProto:
    return model([helper.make_node("Constant", [], ["y"], value=external(location="/etc/passwd"))])


def hidden_in_subgraph() -> onnx.ModelProto:
    branch = helper.make_graph([], "b", [], [], [external(location="/etc/passwd")])
    return model([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])


def hidden_in_function() -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["b"], value=external(location="/etc/passwd"))
    function = helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)])
    return model([helper.make_node("F", ["x"], ["y"], domain="own")], functions=[function])


def hidden_in_sparse_indices() -> onnx.ModelProto:
    document = model()
    sparse = document.graph.sparse_initializer.add(dims=[3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(external(location="*/_ORT_MEM_ADDR_/*"))
    return document


def hidden_in_sparse_attribute() -> onnx.ModelProto:
    values = external(location="/etc/passwd")
    indices = numpy_helper.from_array(np.zeros(12, np.int64), "i")
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[3, 4])
    return model([helper.make_node("Constant", [], ["y"], sparse_value=sparse)])


def hidden_in_training() -> onnx.ModelProto:
    document = model()
    document.training_info.add().initialization.initializer.append(external(location="/etc/passwd"))
    return document


@pytest.mark.parametrize(
    "make",
    [
        hidden_in_attribute,
        hidden_in_subgraph,
        hidden_in_function,
        hidden_in_sparse_indices,
        hidden_in_sparse_attribute,
        hidden_in_training,
    ],
)
def test_looks_everywhere(tmp_path: Path, make: object) -> None:
    with pytest.raises(ValueError, match=r"is not a relative file name|is an address in memory"):
        onnx_file.check(saved(tmp_path, make()))  # type: ignore[operator]


def test_looks_at_both_halves_of_a_graph_that_occurs_twice(tmp_path: Path) -> None:
    """Protobuf merges the two, so a reader that takes the last one alone would miss the first."""
    hostile = model(weight=external(location="/etc/passwd")).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(hostile + model().SerializeToString())
    with pytest.raises(ValueError, match="is not a relative file name"):
        onnx_file.check(tmp_path / "model.onnx")


def test_refuses_unknown_domains_and_knows_the_models_own_functions(tmp_path: Path) -> None:
    unknown = model([helper.make_node("Evil", ["x"], ["y"], name="n", domain="evil.ops")])
    with pytest.raises(ValueError, match=r"node 'n' uses Evil of the unknown operator domain 'evil.ops'"):
        onnx_file.check(saved(tmp_path, unknown))
    function = helper.make_function(
        "own", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    known = model([helper.make_node("F", ["x"], ["y"], domain="own")], functions=[function])
    assert onnx_file.check(saved(tmp_path, known))["ops"] == {"F": 1, "Relu": 1}


def wide(number: int, text: bytes) -> bytes:
    """A field with text as protobuf for C++ reads it, which forgets what is beyond 32 bits of its tag."""
    tag = number << 3 | 2 | 1 << 32
    return bytes([*(tag >> 7 * i & 0x7F | 0x80 for i in range(4)), tag >> 28, len(text)]) + text


def test_refuses_fields_that_others_would_see(tmp_path: Path) -> None:
    """Else external data, or a domain, would be hidden from this reader and there for the library."""
    inside = numpy_helper.from_array(WEIGHT, "w").SerializeToString()
    place = b"\x0a\x08location\x12\x0d../secret.bin"
    for hidden in (wide(13, place), b"\xea\x80\x80\x80\x80\x00" + bytes([len(place)]) + place):
        document = model()
        del document.graph.initializer[:]
        graph = document.graph.SerializeToString()
        document.ClearField("graph")
        tensor = inside + hidden
        graph += b"\x2a" + _length(tensor) + tensor
        path = tmp_path / "model.onnx"
        path.write_bytes(document.SerializeToString() + b"\x3a" + _length(graph) + graph)
        with pytest.raises(ValueError, match=r"malformed: the field number \d+ in [56] bytes"):
            onnx_file.check(path)


def _length(text: bytes) -> bytes:
    return bytes([len(text) & 0x7F | 0x80, len(text) >> 7])


def test_refuses_sizes_that_cannot_be(tmp_path: Path) -> None:
    for dims, reason in [([1 << 40, 1 << 40], "claims more than"), ([-3, 4], "has the dimension -3")]:
        tensor = TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, raw_data=b"1234")
        with pytest.raises(ValueError, match=reason):
            onnx_file.check(saved(tmp_path, model(weight=tensor)))
    short = TensorProto(name="w", dims=[3, 4], data_type=TensorProto.FLOAT, raw_data=b"1234")
    with pytest.raises(ValueError, match="holds 4 bytes, expected 48"):
        onnx_file.check(saved(tmp_path, model(weight=short)))
    empty = TensorProto(name="w", dims=[1000], data_type=TensorProto.FLOAT)
    with pytest.raises(ValueError, match="claims 1000 elements and does not hold them"):
        onnx_file.check(saved(tmp_path, model(weight=empty)))


def test_refuses_deep_nesting(tmp_path: Path) -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(onnx_file.DEEPEST + 2):
        graph = helper.make_graph(
            [helper.make_node("If", ["x"], [], then_branch=graph, else_branch=graph)], "g", [], []
        )
        graph.node[0].attribute.pop()  # one branch is deep enough
    with pytest.raises(ValueError, match="nested more than"):
        onnx_file.check(saved(tmp_path, model(list(graph.node))))


def test_every_truncation_is_a_value_error(tmp_path: Path) -> None:
    whole = model().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = onnx_file.check(path)
        except ValueError as error:
            assert "model.onnx is refused: " in str(error)
        else:
            assert found["nodes"] == 1  # cut between two whole fields


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_value_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(whole))
    try:
        onnx_file.check(path)
    except ValueError as error:
        assert "is refused" in str(error)


def test_an_absent_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        onnx_file.check(tmp_path / "absent.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ValueError, match="the file is empty"):
        onnx_file.check(tmp_path / "empty.onnx")


def test_travels() -> None:
    """Python 3.8 syntax, and nothing but the standard library."""
    source = Path(onnx_file.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported == {"__future__", "mmap", "os", "stat", "pathlib", "typing"}
