"""An ONNX file in half precision, FP16 or BF16: its weights and what is between its operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.execution import inspect_onnx
from deploycompress.writing import saving

if TYPE_CHECKING:
    import onnx

OLDEST_BF16 = 22  # opset
# Sums over many values, and what is divided by them: FP16 has three digits and ends at 65504, BF16 has two.
IN_FLOAT = (
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "Softmax",
    "LogSoftmax",
    "ReduceSum",
    "ReduceMean",
    "ReduceL2",
    "ReduceLogSumExp",
    "CumSum",
    "Pow",
)


def to_half(source: Path, destination: Path, precision: str) -> None:
    """Write ``source`` in "fp16" or "bf16" to ``destination``; inputs and outputs stay as they are.

    Operators that sum many values stay in FP32, and so does what ONNX Runtime's converter leaves in it. Raises
    ConfigError when the reader refuses the file or its opset is too old, StageFailed when it cannot be converted.
    """
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    opset = int(inspect_onnx(source)["opset"])
    if precision == "bf16" and opset < OLDEST_BF16:
        raise ConfigError(
            f"{source.name} has opset {opset}, and convolutions in BF16 are there from {OLDEST_BF16} on; export with "
            f"opset: {OLDEST_BF16}"
        )
    try:
        model = onnx.load(source)
        originals = {t.name: onnx.TensorProto.FromString(t.SerializeToString()) for t in _floats(model.graph)}
        converted = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *IN_FLOAT]
        )
        if precision == "bf16":
            _to_bfloat16(converted.graph, originals)
        ordered = onnx_ir.from_proto(converted)
        ordered.graph.sort()  # the converter puts its casts at the end
        with saving(destination):
            onnx_ir.save(ordered, destination)
    except Exception as error:  # the converter raises whatever happens to fail
        raise StageFailed(
            f"{source.name} cannot be converted to {precision}: {type(error).__name__}: {error}"
        ) from error


def _to_bfloat16(graph: onnx.GraphProto, originals: Mapping[str, onnx.TensorProto]) -> None:
    """In place: what is FP16 becomes BF16, weights from their values in FP32, since FP16 has less range."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    def retyped(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT16:
            known = originals.get(tensor.name, tensor)
            values = numpy_helper.to_array(known).astype(np.float32)
            bits = values.view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even
            name, shape = tensor.name, list(tensor.dims)
            tensor.Clear()
            tensor.name, tensor.data_type = name, TensorProto.BFLOAT16
            tensor.dims.extend(shape)
            tensor.raw_data = rounded.astype("<u2").tobytes()

    for tensor in graph.initializer:
        retyped(tensor)
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT16:
            info.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            for tensor in (attribute.t, *attribute.tensors):
                retyped(tensor)
            for inner in (attribute.g, *attribute.graphs):
                _to_bfloat16(inner, originals)


def _floats(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    from onnx import TensorProto

    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            yield tensor
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _floats(inner)
