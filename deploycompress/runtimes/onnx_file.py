"""The safe ONNX reader: walks a file's wire format and refuses what no framework should be given.

It travels to devices inside the runner, so it needs the standard library alone and keeps to Python 3.8
syntax. Boards carry old runtimes, and those trust the file: external data outside its folder
(CVE-2022-25882, CVE-2024-27318, CVE-2026-27489), and addresses in memory in place of a file name.
Field numbers are those of onnx.proto. Protobuf merges a message that occurs twice, so every occurrence
is visited.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Any, Iterator, Tuple

DOMAINS = frozenset(
    [
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.training",
        "ai.onnx.preview.training",
        "com.microsoft",
        "com.microsoft.nchwc",
        "com.microsoft.experimental",
        "com.ms.internal.nhwc",
    ]
)
MOST_NODES = 500000
MOST_TENSORS = 500000
MOST_ELEMENTS = 1 << 40
DEEPEST = 16  # graphs within graphs
LARGEST_FIELD = (1 << 29) - 1
MEMORY_MARKER = "_ORT_MEM_ADDR_"

# TensorProto.DataType -> bits of one element; strings (8) have no fixed size
ELEMENT_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64}
ELEMENT_BITS.update({15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2})

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
Span = Tuple[int, int]
Field = Tuple[int, int, Any]  # number, wire type, and an int (VARINT) or the span of the bytes


def check(path: str | Path) -> dict[str, Any]:
    """Read the whole structure of an ONNX file. Raises ValueError with the reason to refuse it.

    Gives ``ir_version``, ``opset``, ``domains`` (name -> version), ``nodes``, ``ops`` (type -> count),
    ``inputs`` and ``outputs`` (name -> {"type": TensorProto.DataType, "shape": list of int, str or None};
    inputs without those that an initialiser fills), ``initializers``, ``external`` (file names) and
    ``metadata``.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path.parent).model()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}") from None


class _Reader:
    """One pass over one file; collects what is worth telling and raises ValueError at the first fault."""

    def __init__(self, data: mmap.mmap, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.nodes = 0
        self.tensors = 0
        self.ops: dict[str, int] = {}
        self.called: dict[tuple[str, str], str] = {}
        self.functions: set[tuple[str, str]] = set()
        self.external_bytes: dict[str, int] = {}

    # ------------------------------------------------------------ messages of onnx.proto

    def model(self) -> dict[str, Any]:
        span = (0, len(self.data))
        found: dict[str, Any] = {"ir_version": 0, "metadata": {}}
        domains: dict[str, int] = {}
        names: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}
        filled: set[str] = set()
        graphs = 0
        for number, wire, value in self.fields(span):
            if number == 1 and wire == VARINT:
                found["ir_version"] = value
            elif number == 7:
                graphs += 1
                self.graph(self.message(wire, value, "graph"), 0, names, filled)
            elif number == 8:
                domain, version = self.opset(self.message(wire, value, "opset_import"))
                domains[domain] = version
            elif number == 14:
                key, text = self.pair(self.message(wire, value, "metadata_props"))
                found["metadata"][key] = text
            elif number == 20:
                for inner, inner_wire, inner_value in self.fields(self.message(wire, value, "training_info")):
                    if inner in (1, 2):
                        self.graph(self.message(inner_wire, inner_value, "training graph"), 0)
            elif number == 25:
                self.function(self.message(wire, value, "function"), domains)
        if not graphs or not found["ir_version"] or not domains:
            raise ValueError("not an ONNX model: it has no graph, no ir_version or no opset_import")
        self.check_domains(domains)
        found["opset"] = domains.get("", domains.get("ai.onnx", 0))
        found["domains"] = domains
        found["inputs"] = {name: of for name, of in names["inputs"].items() if name not in filled}
        found["outputs"] = names["outputs"]
        found["nodes"] = self.nodes
        found["ops"] = dict(sorted(self.ops.items()))
        found["initializers"] = len(filled)
        found["external"] = sorted(self.external_bytes)
        return found

    def check_domains(self, declared: dict[str, int]) -> None:
        for (domain, op), node in sorted(self.called.items()):
            if (domain, op) in self.functions:
                continue
            if domain not in DOMAINS:
                raise ValueError(
                    f"node {node!r} uses {op} of the unknown operator domain {domain!r}; "
                    f"known are {', '.join(sorted(d for d in DOMAINS if d))}"
                )
            if domain not in declared and not (domain in ("", "ai.onnx") and {"", "ai.onnx"} & set(declared)):
                raise ValueError(f"operator {op} is of domain {domain!r}, which the file does not import")

    def graph(
        self,
        span: Span,
        depth: int,
        names: dict[str, dict[str, Any]] | None = None,
        filled: set[str] | None = None,
    ) -> None:
        if depth > DEEPEST:
            raise ValueError(f"graphs are nested more than {DEEPEST} deep")
        for number, wire, value in self.fields(span):
            if number == 1:
                self.node(self.message(wire, value, "node"), depth)
            elif number == 5:
                name = self.tensor(self.message(wire, value, "initializer"))
                if filled is not None:
                    filled.add(name)
            elif number == 15:
                name = self.sparse(self.message(wire, value, "sparse_initializer"))
                if filled is not None:
                    filled.add(name)
            elif number in (11, 12) and names is not None:
                of = names["inputs" if number == 11 else "outputs"]
                name, described = self.value_info(self.message(wire, value, "graph input or output"))
                of[name] = described

    def function(self, span: Span, declared: dict[str, int]) -> None:
        name = domain = ""
        for number, wire, value in self.fields(span):
            if number == 1:
                name = self.text(wire, value)
            elif number == 10:
                domain = self.text(wire, value)
            elif number == 7:
                self.node(self.message(wire, value, "node"), 1)
            elif number == 9:
                imported, version = self.opset(self.message(wire, value, "opset_import"))
                declared.setdefault(imported, version)
            elif number == 11:
                self.attribute(self.message(wire, value, "attribute"), 1)
        self.functions.add((domain, name))

    def node(self, span: Span, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES} nodes")
        name = op = domain = ""
        for number, wire, value in self.fields(span):
            if number == 3:
                name = self.text(wire, value)
            elif number == 4:
                op = self.text(wire, value)
            elif number == 7:
                domain = self.text(wire, value)
            elif number == 5:
                self.attribute(self.message(wire, value, "attribute"), depth)
        if not op:
            raise ValueError(f"node {name!r} names no operator")
        self.ops[op] = self.ops.get(op, 0) + 1
        self.called.setdefault((domain, op), name)

    def attribute(self, span: Span, depth: int) -> None:
        for number, wire, value in self.fields(span):
            if number in (5, 10):
                self.tensor(self.message(wire, value, "tensor attribute"))
            elif number in (6, 11):
                self.graph(self.message(wire, value, "graph attribute"), depth + 1)
            elif number in (22, 23):
                self.sparse(self.message(wire, value, "sparse tensor attribute"))

    def sparse(self, span: Span) -> str:
        name = ""
        for number, wire, value in self.fields(span):
            if number in (1, 2):
                found = self.tensor(self.message(wire, value, "sparse tensor"))
                name = found if number == 1 else name
        return name

    def tensor(self, span: Span) -> str:
        """Check one TensorProto, inline or external; gives its name."""
        self.tensors += 1
        if self.tensors > MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS} tensors")
        dims: list[int] = []
        name, data_type, location = "", 0, 0
        raw: int | None = None
        typed = strings = 0
        entries: list[tuple[str, str]] = []
        for number, wire, value in self.fields(span):
            if number == 1:
                dims.extend(self.integers(wire, value))
            elif number == 2 and wire == VARINT:
                data_type = value
            elif number == 6:
                strings += 1
            elif number in (4, 5, 7, 10, 11):
                typed += value[1] - value[0] if wire == BYTES else 8
            elif number == 8:
                name = self.text(wire, value)
            elif number == 9:
                start, end = self.message(wire, value, "raw_data")
                raw = end - start
            elif number == 13:
                entries.append(self.pair(self.message(wire, value, "external_data")))
            elif number == 14 and wire == VARINT:
                location = value
        elements = _elements(name, dims)
        size = _size(elements, data_type)
        if entries or location:
            self.external(name, entries, size)
        elif raw is not None:
            if size is None or raw != size:
                raise ValueError(f"tensor {name!r} of shape {dims} holds {raw} bytes, expected {size}")
        elif elements > 8 * typed + strings:
            raise ValueError(f"tensor {name!r} claims {elements} elements and does not hold them")
        return name

    def external(self, name: str, entries: list[tuple[str, str]], size: int | None) -> None:
        """Check where a tensor's external data lies: a plain file of its own, beside the model."""
        keys = dict(entries)
        unknown = sorted(set(keys) - {"location", "offset", "length", "checksum"})
        if unknown or len(keys) != len(entries):
            raise ValueError(f"external data of tensor {name!r} has unknown or double keys {unknown}")
        if size is None:
            raise ValueError(f"tensor {name!r} cannot lie in external data: its element type has no size")
        place = keys.get("location", "")
        if place not in self.external_bytes:
            self.external_bytes[place] = self.external_file(name, place)
        offset = _natural(name, "offset", keys.get("offset", "0"))
        length = _natural(name, "length", keys["length"]) if "length" in keys else size
        if length != size:
            raise ValueError(f"external data of tensor {name!r} has length {length}, expected {size}")
        if offset + length > self.external_bytes[place]:
            raise ValueError(
                f"external data of tensor {name!r} ends at byte {offset + length} of {place!r}, which has {self.external_bytes[place]}"
            )

    def external_file(self, name: str, place: str) -> int:
        """Size of the external file ``place``; raises ValueError unless it is inside the folder, without links."""
        about = f"external data of tensor {name!r} at {place!r}"
        if MEMORY_MARKER in place:
            raise ValueError(about + " is an address in memory")
        parts = place.split("/")
        if not place or place.startswith("/") or "\\" in place or ":" in place or "\0" in place:
            raise ValueError(about + " is not a relative file name")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(about + " leads outside the model's folder")
        path = self.folder
        for part in parts:
            path = path / part
            try:
                found = os.lstat(str(path))
            except OSError:
                raise ValueError(about + " is missing") from None
            if stat.S_ISLNK(found.st_mode):
                raise ValueError(about + " is a link")
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(about + " is not a file")
        if found.st_nlink > 1:
            raise ValueError(about + f" is a hard link ({found.st_nlink} names)")
        return found.st_size

    def value_info(self, span: Span) -> tuple[str, dict[str, Any]]:
        name = ""
        described: dict[str, Any] = {"type": 0, "shape": None}
        for number, wire, value in self.fields(span):
            if number == 1:
                name = self.text(wire, value)
            elif number == 2:
                for kind, kind_wire, of in self.fields(self.message(wire, value, "type")):
                    if kind == 1:
                        described = self.tensor_type(self.message(kind_wire, of, "tensor type"))
        return name, described

    def tensor_type(self, span: Span) -> dict[str, Any]:
        described: dict[str, Any] = {"type": 0, "shape": None}
        for number, wire, value in self.fields(span):
            if number == 1 and wire == VARINT:
                described["type"] = value
            elif number == 2:
                shape: list[int | str | None] = []
                for inner, inner_wire, of in self.fields(self.message(wire, value, "shape")):
                    if inner == 1:
                        shape.append(self.dimension(self.message(inner_wire, of, "dimension")))
                described["shape"] = shape
        return described

    def dimension(self, span: Span) -> int | str | None:
        size: int | str | None = None
        for number, wire, value in self.fields(span):
            if number == 1 and wire == VARINT:
                size = value
            elif number == 2:
                size = self.text(wire, value)
        return size

    def opset(self, span: Span) -> tuple[str, int]:
        domain, version = "", 0
        for number, wire, value in self.fields(span):
            if number == 1:
                domain = self.text(wire, value)
            elif number == 2 and wire == VARINT:
                version = value
        return domain, version

    def pair(self, span: Span) -> tuple[str, str]:
        key = text = ""
        for number, wire, value in self.fields(span):
            if number == 1:
                key = self.text(wire, value)
            elif number == 2:
                text = self.text(wire, value)
        return key, text

    # ------------------------------------------------------------ the wire format

    def fields(self, span: Span) -> Iterator[Field]:
        at, end = span
        while at < end:
            start = at
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            # Others keep 32 bits of a tag and read five bytes: beyond that, they would see fields where we see none.
            if not 0 < number <= LARGEST_FIELD or at - start > 5:
                raise ValueError(
                    f"malformed: the field number {number} in {at - start} bytes at byte {start}"
                )
            if wire == VARINT:
                value, at = self.varint(at, end)
                yield number, wire, value - (1 << 64) if value >> 63 else value
                continue
            if wire == BYTES:
                length, at = self.varint(at, end)
            elif wire in (FIXED64, FIXED32):
                length = 8 if wire == FIXED64 else 4
            else:
                raise ValueError(f"malformed: wire type {wire} at byte {at}")
            if length > end - at:
                raise ValueError(f"truncated: {length - (end - at)} bytes are missing at byte {at}")
            yield number, wire, (at, at + length)
            at += length

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
        raise ValueError(f"truncated or malformed: no end of a number at byte {at}")

    def message(self, wire: int, value: Any, what: str) -> Span:
        if wire != BYTES:
            raise ValueError(f"malformed: {what} is not a message")
        span: Span = value
        return span

    def text(self, wire: int, value: Any) -> str:
        start, end = self.message(wire, value, "a name")
        if end - start > 1 << 24:
            raise ValueError(f"a text of {end - start} bytes at byte {start}")
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"malformed: a text at byte {start} is not UTF-8") from None

    def integers(self, wire: int, value: Any) -> list[int]:
        """A repeated int64, packed or one at a time."""
        if wire == VARINT:
            return [value]
        at, end = self.message(wire, value, "dims")
        found = []
        while at < end:
            number, at = self.varint(at, end)
            found.append(number - (1 << 64) if number >> 63 else number)
        return found


def _elements(name: str, dims: list[int]) -> int:
    count = 1
    for size in dims:
        if size < 0 or size > MOST_ELEMENTS:
            raise ValueError(f"tensor {name!r} has the dimension {size}")
        count *= size
        if count > MOST_ELEMENTS:
            raise ValueError(f"tensor {name!r} claims more than {MOST_ELEMENTS} elements")
    return count


def _size(elements: int, data_type: int) -> int | None:
    """Bytes of the data; None for strings and unknown types."""
    bits = ELEMENT_BITS.get(data_type)
    return None if bits is None else (elements * bits + 7) // 8


def _natural(name: str, key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"external data of tensor {name!r} has the {key} {text!r}, expected a byte count")
    return int(text)
