"""Damaged ONNX files, and whether another reader sees in them what ours has checked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_mutation import changed_bytes
from fuzz_subject import Subject


class Onnx(Subject):
    """ONNX files, their first bytes above all: what is refused is refused with ValueError by the safe reader.

    In what it accepts, protobuf finds the same files beside the model and no other domains.
    """

    refuses = (ValueError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "w.bin").write_bytes(bytes(64))
        self.files = [document.SerializeToString() for document in _models()]

    def good(self) -> list[Any]:
        return list(self.files)

    def input(self, chance: random.Random) -> bytes:
        data = chance.choice(self.files)
        if chance.random() < 0.5:  # the head alone
            return changed_bytes(data[:96], chance) + data[96:]
        return changed_bytes(data, chance)

    def read(self, given: bytes) -> None:
        from deploycompress.runtimes import onnx_file

        place = self.folder / "model.onnx"
        place.write_bytes(given)
        try:
            told = onnx_file.check(place)
        except ValueError as error:
            assert type(error) is ValueError and str(error).startswith(str(place)), (
                f"not its own words: {error!r}"
            )
            raise
        beside, domains = _seen(given)
        assert beside <= set(told["external"]), f"{beside} lie beside it, told were {told['external']}"
        assert domains <= onnx_file.DOMAINS | {"own"}, f"unknown domains {domains}"


def _seen(given: bytes) -> tuple[set[str], set[str]]:
    """The files that protobuf's tensors lie in, and the domains of its nodes; none where it reads nothing."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(given)
    except DecodeError:
        return set(), set()
    beside, domains = set[str](), set[str]()
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and message.data_location == onnx.TensorProto.EXTERNAL:
            beside |= {entry.value for entry in message.external_data if entry.key == "location"}
        if isinstance(message, onnx.NodeProto):
            domains.add(message.domain)
    return beside, domains


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if not hasattr(value, "ListFields") else [value]:
                yield from _messages(inner)


def _models() -> list[Any]:
    """A product with its weight inside, one with it in a file beside, and one with subgraph, function and sparse tensor."""
    from onnx import TensorProto, helper

    shape = {"x": ["batch", 3], "y": ["batch", 4]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, of) for name, of in shape.items()]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    inside = helper.make_tensor("w", TensorProto.FLOAT, [3, 4], bytes(48), raw=True)
    beside = TensorProto(
        name="w", dims=[3, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "w.bin"), ("offset", "4"), ("length", "48")):
        beside.external_data.add(key=key, value=value)
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]

    def model(nodes: list[Any], weight: Any, **more: Any) -> Any:
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight], **more)
        made = helper.make_model(graph, opset_imports=versions)
        made.metadata_props.add(key="made", value="here")
        return made

    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [ends[1]], [inside])
    rich = model(
        [product, helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)], inside
    )
    rich.functions.append(helper.make_function("own", "Own", ["x"], ["y"], [product], versions))
    sparse = rich.graph.sparse_initializer.add(dims=[3, 4])
    sparse.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [2]))
    return [model([product], inside), model([product], beside), rich]
