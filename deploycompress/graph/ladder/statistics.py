"""What passes through the tensors inside an ONNX file, channel by channel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploycompress.graph.execution import Feed, run_onnx
from deploycompress.writing import saving


@dataclass(frozen=True)
class Channels:
    """Over all samples and places, for each channel: [channels] each."""

    mean: np.ndarray
    largest: np.ndarray  # absolute


def channel_statistics(path: Path, axes: Mapping[str, int], feeds: Iterable[Feed]) -> dict[str, Channels]:
    """Of each tensor in ``axes``, whose channels lie along that axis. Raises as ``run_onnx`` does."""
    import onnx

    model = onnx.load(path)
    known = {port.name for port in (*model.graph.output, *model.graph.input)}
    for name in axes:
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    sums: dict[str, np.ndarray] = {}
    largest: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="statistics-") as folder:
        opened = Path(folder) / "model.onnx"
        with saving(opened):
            onnx.save(model, opened)
        for feed in feeds:
            (found,) = run_onnx(opened, [feed])
            for name, axis in axes.items():
                array = found[name] if name in found else np.asarray(feed[name])
                rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64)
                sums[name] = sums.get(name, 0.0) + rows.sum(0)
                largest[name] = np.maximum(largest.get(name, 0.0), np.abs(rows).max(0))
                counts[name] = counts.get(name, 0) + rows.shape[0]
    return {name: Channels(sums[name] / counts[name], largest[name]) for name in sums}
