"""Zeros in the weights of an ONNX file: how many there are, and the same file without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploycompress.graph.execution import inspect_onnx
from deploycompress.writing import saving

if TYPE_CHECKING:
    import onnx

LEAST_ELEMENTS = 64  # of a weight; shapes and scales are none


def share_of_zeros(path: Path) -> float:
    """Zeros of all weights in the file together, INT8 ones included; 0 where it has no weight."""
    import onnx

    zeros = total = 0
    for tensor in _weights(onnx.load(path)):
        values = onnx.numpy_helper.to_array(tensor)
        zeros, total = zeros + int((values == 0).sum()), total + values.size
    return zeros / total if total else 0.0


def fill_zeros(source: Path, destination: Path) -> None:
    """The same file with other numbers in the place of zeros: what a runtime gains by them is the difference.

    Numbers of the tensor itself, drawn at random, so that none is of another magnitude.
    """
    import onnx

    model, rng = onnx.load(source), np.random.default_rng(0)
    for tensor in _weights(model):
        values = np.array(onnx.numpy_helper.to_array(tensor))
        gone = values == 0
        others = values[~gone] if not gone.all() else np.ones(1, values.dtype)
        values[gone] = rng.choice(others, int(gone.sum()))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    large = bool(inspect_onnx(source)["external"])  # protobuf holds two gigabytes
    with saving(destination):
        onnx.save(model, destination, save_as_external_data=large, location=f"{destination.name}.data")


def _weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    import onnx

    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
    for tensor in model.graph.initializer:
        if tensor.data_type in kinds and len(tensor.dims) > 1 and np.prod(tensor.dims) >= LEAST_ELEMENTS:
            yield tensor
