"""Which layer of the network an operator of a runtime computes, told by the names that an ONNX file keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploycompress.artifact import Artifact

if TYPE_CHECKING:
    import onnx

# A tensor of a module: layer1.0.conv1.weight, and layer1.0.conv1.weight_quantized once that is INT8.
PARAMETER = re.compile(r"^(?P<layer>.+)\.(?:weight|bias)\w*$")
# What runtimes hang on a node's name when they fuse it, or lay it out anew.
ADDED = re.compile(r"(_nchwc|_token_\d+|_quant|/WithoutBiases|/DequantizationMultiply|/fq_\w+)$")
COMPUTES = re.compile(r"Conv|Gemm|MatMul|LSTM|GRU|RNN|FullyConnected", re.IGNORECASE)


def with_layers(
    rows: Sequence[Mapping[str, Any]], artifact: Artifact, onnx_file: Path | None
) -> list[dict[str, Any]]:
    """The rows of ``devices.placement`` with the ``layer`` of each operator; empty where that is not known.

    ``onnx_file``: what the artefact is, or was made of; engines and OpenVINO's models keep the names of its nodes.
    """
    if artifact.kind == "checkpoint":  # its operators are its modules
        return [{**row, "layer": row["node"]} for row in rows]
    if onnx_file is None:
        return [{**row, "layer": ""} for row in rows]
    names = _Names(onnx_file)
    known = [names.candidates(row["node"], row["op"]) for row in rows]
    taken = {found[0] for found in known if len(found) == 1}
    told = []
    for row, found in zip(rows, known, strict=True):
        left = [layer for layer in found if len(found) == 1 or layer not in taken]
        taken.update(left[:1])
        told.append({**row, "layer": left[0] if left else ""})
    return told


class _Names:
    """The nodes of one file, by what a runtime may call them after its fusions."""

    def __init__(self, path: Path) -> None:
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        self.by_output = {output: node for node in graph.node for output in node.output}
        self.by_name = {node.name: node for node in graph.node if node.name}

    def candidates(self, name: str, op: str) -> list[str]:
        """The layers that the operator may be: one, none, or the two branches that an addition joins.

        A fused operator bears the name of its last part: of what it adds or clips, behind the layer that it computes.
        """
        if not COMPUTES.search(op):
            return []
        node = None
        while node is None:
            node = self.by_name.get(name) or self.by_output.get(name)
            shorter = ADDED.sub("", name)
            if shorter == name:
                break
            name = shorter
        return [] if node is None else list(dict.fromkeys(self._behind(node, 4)))

    def _behind(self, node: onnx.NodeProto, deep: int) -> list[str]:
        layer = self._layer(node)
        if layer or not deep:
            return [layer] if layer else []
        sources = (self.by_output[name] for name in node.input if name in self.by_output)
        return [found for source in sources for found in self._behind(source, deep - 1)]

    def _layer(self, node: onnx.NodeProto) -> str:
        """Of a node that reads a module's tensors, also through DequantizeLinear."""
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return ""
        for name in node.input[1:]:
            source = self.by_output.get(name)
            stored = source.input[0] if source is not None and source.op_type == "DequantizeLinear" else name
            found = PARAMETER.match(stored)
            if found is not None and stored not in self.by_output:
                return found["layer"]
        return ""
