"""Weights that share a few values: no faster in any runtime, but a compressed file holds them in a few bits each.

Each weight tensor's values are moved to the nearest of at most K centres, found by Lloyd's algorithm from equally spaced
ones (Han et al. 2016, "Deep Compression", section 3, which found that start to keep the few large weights that matter).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploycompress.writing import saving

LEAST_ELEMENTS = 1024  # of a tensor; below that the centres would be most of it
ITERATIONS = 50
SETTLED = 1e-6  # of the range: the centres move no more


def cluster_weights(source: Path, destination: Path, clusters: int) -> int:
    """Write ``source`` with at most ``clusters`` values in each large FP32 weight; how many tensors were changed."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    changed = 0
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or int(np.prod(tensor.dims)) < LEAST_ELEMENTS:
            continue
        values = numpy_helper.to_array(tensor)
        if not np.isfinite(values).all():
            continue
        tensor.CopyFrom(numpy_helper.from_array(clustered(values, clusters), tensor.name))
        changed += 1
    with saving(destination):
        onnx.save(model, destination)
    return changed


def clustered(values: np.ndarray, clusters: int) -> np.ndarray:
    """``values`` with at most ``clusters`` different ones; zeros stay zeros, since they were meant."""
    flat = np.sort(values[values != 0].astype(np.float64), axis=None)
    if len(np.unique(flat)) < clusters:
        return values
    centres = np.linspace(flat[0], flat[-1], clusters - 1)
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    for _ in range(ITERATIONS):
        edges = np.searchsorted(flat, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(flat)]])
        counts = np.diff(bounds)
        moved = np.where(counts > 0, np.diff(sums[bounds]) / np.maximum(counts, 1), centres)
        settled = np.abs(moved - centres).max() <= SETTLED * (flat[-1] - flat[0])
        centres = np.sort(moved)
        if settled:
            break
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    found: np.ndarray = np.where(values == 0, 0.0, centres[nearest]).astype(values.dtype)
    return found
