"""The ways from a PyTorch module to an ONNX graph."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from deploycompress.contracts import Model
from deploycompress.graph.attention import FourDimensions


class FrozenValues(Warning):
    """A file holds as a constant what the module computes from its inputs."""


def dynamo(module: nn.Module, model: Model, example: Mapping[str, Tensor], opset: int) -> Any:
    """By torch.export, then onnxscript's graph and optimiser."""
    named = _Positional(module, model, list(example))
    with torch.no_grad():
        outputs = list(model.call(module, example))
    shapes = tuple(_dynamic(spec.shape) for spec in model.inputs.values())
    with FourDimensions():
        program = torch.onnx.export(
            named.eval(),
            tuple(example.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(example),
            output_names=outputs,
            dynamic_shapes=(shapes,),  # of *inputs
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter gave nothing")
    return program.model


def torchscript(module: nn.Module, model: Model, example: Mapping[str, Tensor], opset: int) -> Any:
    """By a trace of one call, which takes every branch as this call did; warns of that by ``FrozenValues``."""
    import onnx_ir

    named = _Positional(module, model, list(example))
    with torch.no_grad():
        answers = model.call(module, example)
    shapes = {name: _dynamic(spec.shape) for name, spec in model.inputs.items()}
    batch = next(iter(shapes.values())).get(0)
    if batch is not None:
        size = next(iter(example.values())).shape[0]
        shapes |= {n: {0: batch} for n, answer in answers.items() if answer.dim() and len(answer) == size}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            named.eval(),
            tuple(example.values()),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(example),
            output_names=list(answers),
            dynamic_axes=shapes,
            verbose=False,
        )
        graph = onnx_ir.load(path)
        onnx_ir.external_data.load_to_model(graph)
    frozen = [w for w in said if issubclass(w.category, TracerWarning)]
    if frozen:
        warnings.warn(FrozenValues(str(frozen[0].message).split(". ")[0]), stacklevel=2)
    return graph


Exporter = Callable[[nn.Module, Model, Mapping[str, Tensor], int], Any]  # gives an onnx_ir.Model
EXPORTERS: dict[str, Exporter] = {"dynamo": dynamo, "torchscript": torchscript}  # tried in this order


class _Positional(nn.Module):
    """The model as exporters want it: tensors by position, outputs as a tuple in the order of their names."""

    def __init__(self, module: nn.Module, model: Model, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._call = model.call
        self._names = tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._call(self.module, dict(zip(self._names, inputs, strict=True))).values())


def _dynamic(shape: Sequence[int | str]) -> dict[int, str]:
    """Dimension -> the name of those that have one."""
    return {i: size for i, size in enumerate(shape) if isinstance(size, str)}
