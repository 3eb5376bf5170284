"""Where a file begins to differ from what it was made of: the first node or layer, with both values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploycompress.contracts import Model
from deploycompress.errors import DeployCompressError
from deploycompress.graph.execution import Feed, inspect_onnx, select
from deploycompress.model.parity import Parity, compare, to_numpy
from deploycompress.runtimes.onnxruntime import OnnxRuntime
from deploycompress.writing import saving

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

LARGEST_BYTES = 500_000_000  # of a file that is taken apart: every tensor inside it is kept at once

Differs = Callable[[Parity], bool]


@dataclass(frozen=True)
class Difference:
    """Of the tensor that ``where`` gives: the place at which the two are furthest apart, and both values there."""

    where: str
    place: tuple[int, ...]
    expected: float
    found: float

    def __str__(self) -> str:
        return (
            f"it begins at {self.where}: {self.found:.6g} at {list(self.place)}, expected {self.expected:.6g}"
        )


def first_difference(reference: Path, candidate: Path, feed: Feed, differs: Differs) -> Difference | None:
    """The first node of ``candidate``, in its order, that gives another tensor than ``reference`` has by that name.

    None where no tensor of the same name differs, or the files cannot be taken apart. Both are run as they are
    written, without a runtime's optimisation.
    """
    try:
        if any(_bytes(path) > LARGEST_BYTES for path in (reference, candidate)):
            return None
        before, after = (dict(_inside(path, feed)) for path in (reference, candidate))
        nodes = _makers(candidate)
    except Exception:  # it explains another failure, and must not become one
        return None
    for name, where in nodes.items():
        if name in before and name in after and (apart := _apart(before[name], after[name], differs)):
            return Difference(where, *apart)
    return None


def first_layer(
    module: nn.Module, model: Model, candidate: Path, feed: Mapping[str, Tensor], differs: Differs
) -> Difference | None:
    """The first layer of ``module`` from which on ``candidate`` has no tensor like what the layers give.

    An exporter names tensors as it likes, so they are matched by shape and values. None as for files.
    """
    try:
        if _bytes(candidate) > LARGEST_BYTES:
            return None
        inside = [array for _, array in _inside(candidate, to_numpy(feed))]
        layers = _layers(module, model, feed)
    except Exception:
        return None
    found: Difference | None = None
    for name, wanted in reversed(layers.items()):
        alike = [array for array in inside if array.shape == wanted.shape and array.dtype.kind == "f"]
        apart = [_apart(wanted, array, differs) for array in alike]
        if None in apart:
            break
        if apart:
            nearest = min(apart, key=lambda a: abs(a[1] - a[2]))  # type: ignore[index]
            found = Difference(f"layer {name}", *nearest)  # type: ignore[misc]
    return found


def _apart(
    expected: np.ndarray, found: np.ndarray, differs: Differs
) -> tuple[tuple[int, ...], float, float] | None:
    """Where two arrays are furthest apart, and both values; None where they are alike."""
    if expected.shape != found.shape or expected.dtype.kind != "f" or not expected.size:
        return None
    try:
        if not differs(compare({"": expected}, {"": found})):
            return None
    except DeployCompressError:  # values that are not finite
        pass
    distance = np.abs(expected.astype(np.float64) - found)
    place = np.unravel_index(int(np.nan_to_num(distance, nan=np.inf).argmax()), expected.shape)
    return tuple(map(int, place)), float(expected[place]), float(found[place])


# ---------------------------------------------------------------- what is inside


def _bytes(path: Path) -> int:
    beside = [path.parent / name for name in inspect_onnx(path)["external"]]
    return sum(p.stat().st_size for p in (path, *beside))


def _inside(path: Path, feed: Feed) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor that a node of the file gives, by name."""
    import onnx

    described = inspect_onnx(path)
    document = onnx.load(path)
    known = {output.name for output in document.graph.output}
    for name in _outputs(document.graph):
        if name not in known:
            document.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    with tempfile.TemporaryDirectory(prefix="bisect-") as folder:
        opened = Path(folder) / path.name
        with saving(opened):
            onnx.save(document, opened)
        with OnnxRuntime().open(opened, {"graph_level": "off"}) as session:
            session.bind(select(feed, described["inputs"], path))()
            yield from session.fetch().items()


def _makers(path: Path) -> dict[str, str]:
    """Tensor -> the node that gives it, in words, in the order of the file."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return {
        name: f"node {node.name or name} ({node.op_type})"
        for node in graph.node
        for name in node.output
        if name
    }


def _outputs(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from (name for name in node.output if name)


def _layers(module: nn.Module, model: Model, feed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Layer -> its output, of those that give one tensor of floating point; in the order in which they run."""
    import torch

    found: dict[str, np.ndarray] = {}

    def told(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                found.pop(name, None)  # of several calls the last
                found[name] = output.detach().float().cpu().numpy().copy()

        return hook

    leaves = {name: part for name, part in module.named_modules() if name and not list(part.children())}
    hooks = [part.register_forward_hook(told(name)) for name, part in leaves.items()]
    try:
        with torch.no_grad():
            model.call(module, feed)
    finally:
        for hook in hooks:
            hook.remove()
    return found
