"""Which layers are better left in FP32: by how far INT8 takes the outputs off through them, for the time that it saves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from deploycompress.graph.execution import Feed
from deploycompress.graph.ladder.layers import Graph, Layer, layers
from deploycompress.runtimes.onnxruntime import OnnxRuntime

PROFILED, UNSTEADY = 12, 4  # calls
LEAST_MS = 1e-3  # that a layer's INT8 counts for at least: the profiler's unit
FUSED_BEHIND = 3  # nodes behind a layer by whose output ONNX Runtime may call what it made of them
# What ONNX Runtime adds to a name: of its own layout of channels, and of a layer between Q and DQ nodes.
ADDED = re.compile(r"(_nchwc|_token_\d+)$")


def layer_names(path: Path) -> list[str]:
    """The nodes with constant weights that have a name, in order."""
    import onnx

    return [layer.node.name for layer in layers(Graph(onnx.load(path).graph)) if layer.node.name]


def ranked(
    names: Iterable[str],
    distance_without: Callable[[str], float],
    distance: float,
    saved_ms: Mapping[str, float],
    in_time: Callable[[], bool],
) -> list[str]:
    """The layers without which the outputs come nearer, the one that gains most per millisecond first.

    ``distance_without``: of a file in which that layer is in FP32; ``saved_ms``: what INT8 saves in each, which is
    negative where it is slower. Layers that are not asked for any more, since ``in_time`` says no, are left out.
    """
    worth = {}
    for name in names:
        if not in_time():
            break
        gained = distance - distance_without(name)
        if gained > 0:
            worth[name] = gained / max(saved_ms.get(name, 0.0), LEAST_MS)
    return sorted(worth, key=lambda name: -worth[name])


def saved_ms(source: Path, quantized: Path, feed: Feed, threads: int) -> dict[str, float]:
    """Layer, by name -> milliseconds that it takes less in ``quantized``, as ONNX Runtime's profiler tells it.

    With what is fused into it. One that was fused beyond recognition has the mean of the others.
    """
    import onnx

    before, after = (_profiled(path, feed, threads) for path in (source, quantized))
    graph = Graph(onnx.load(source, load_external_data=False).graph)
    named = [layer for layer in layers(graph) if layer.node.name]
    found = {}
    for layer in named:
        float_ms = next((before[name] for name in _names(layer, graph) if name in before), None)
        int8_ms = next((after[name] for name in _names(layer, graph) if name in after), None)
        if float_ms is not None and int8_ms is not None:
            found[layer.node.name] = float_ms - int8_ms
    mean = float(np.mean(list(found.values()))) if found else 0.0
    return {layer.node.name: found.get(layer.node.name, mean) for layer in named}


def _profiled(path: Path, feed: Feed, threads: int) -> dict[str, float]:
    """Operator, by its name without what ONNX Runtime adds to it -> milliseconds."""
    path = path.absolute()
    with (
        TemporaryDirectory(prefix="profile-") as folder,
        chdir(folder),
    ):  # the profiler writes where it stands
        found = OnnxRuntime().profile(path, {"threads": threads}, feed, PROFILED)
    return {ADDED.sub("", name): float(np.median(of["ns"][UNSTEADY:])) / 1e6 for name, of in found.items()}


def _names(layer: Layer, graph: Graph) -> Iterator[str]:
    """What an operator made of the layer may be called: as its node, or by the last output that was fused into it."""
    node = layer.node
    yield node.name
    yield f"{node.name}/MatMulAddFusion"
    outputs = []
    for _ in range(FUSED_BEHIND):
        outputs.append(node.output[0])
        readers = graph.readers.get(node.output[0], [])
        if len(readers) != 1:
            break
        node = readers[0]
    yield from reversed(outputs)


def until(seconds: float) -> Callable[[], bool]:
    """Whether that many seconds from now have not passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end
