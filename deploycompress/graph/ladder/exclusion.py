"""Which layers are better left in FP32: by how far INT8 takes the outputs off through them, for the time that they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from deploycompress.graph.execution import Feed
from deploycompress.graph.ladder.layers import Graph, layers
from deploycompress.runtimes.onnxruntime import OnnxRuntime

PROFILED, UNSTEADY = 12, 4  # calls
LEAST_SHARE = 1e-3  # of the whole time, that a layer counts for at least


def layer_names(path: Path) -> list[str]:
    """The nodes with constant weights that have a name, in order."""
    import onnx

    return [layer.node.name for layer in layers(Graph(onnx.load(path).graph)) if layer.node.name]


def ranked(
    names: Iterable[str],
    distance_without: Callable[[str], float],
    distance: float,
    times: Mapping[str, float],
    in_time: Callable[[], bool],
) -> list[str]:
    """The layers without which the outputs come nearer, the one that gains most per share of the time first.

    ``distance_without``: of a file in which that layer is in FP32; ``times``: the share of the time that each takes.
    Layers that are not asked for any more, since ``in_time`` says no, are left out.
    """
    worth = {}
    for name in names:
        if not in_time():
            break
        gained = distance - distance_without(name)
        if gained > 0:
            worth[name] = gained / max(times.get(name, 0.0), LEAST_SHARE)
    return sorted(worth, key=lambda name: -worth[name])


def time_shares(path: Path, feed: Feed, names: Iterable[str], threads: int) -> dict[str, float]:
    """Share of the whole time that each layer takes in FP32, as ONNX Runtime's profiler tells it."""
    path = path.absolute()
    with (
        TemporaryDirectory(prefix="profile-") as folder,
        chdir(folder),
    ):  # the profiler writes where it stands
        # Fused further, an operator bears the name of the last tensor, and not of the layer.
        options = {"threads": threads, "graph_level": "basic"}
        found = OnnxRuntime().profile(path, options, feed, PROFILED)
    taken = {name: float(np.median(of["ns"][UNSTEADY:])) for name, of in found.items()}
    whole = sum(taken.values()) or 1.0
    return {name: taken.get(name, 0.0) / whole for name in names}


def until(seconds: float) -> Callable[[], bool]:
    """Whether that many seconds from now have not passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end
