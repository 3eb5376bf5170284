"""Torch-Pruning's dependency graph of a model: which layers' channels hang together."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from deploycompress.contracts import Model
from deploycompress.errors import StageFailed


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """``import name`` fails inside, unless it was imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


# torch_pruning imports timm where it is installed, which costs 6 s, for a layer type that we do not use.
with _hidden("timm"):
    import torch_pruning
    from torch_pruning.dependency.index_mapping import _SplitIndexMapping


def trace(module: nn.Module, model: Model) -> Any:
    """A ``torch_pruning.DependencyGraph`` over ``module``, from one forward pass on random inputs.

    Every output ends in a node of its own, so that channels which reach an output can be told. All parameters
    of ``module`` are made to require gradients: the trace follows them.
    Raises StageFailed when the forward pass, or following it, fails.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def forward(traced: nn.Module, inputs: Any) -> list[torch.Tensor]:
        outputs = model.call(traced, inputs)
        # "* 1" gives an output its own node even where a layer's result is the output itself.
        return [tensor * 1 for tensor in outputs.values() if tensor.requires_grad]

    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # "Maximum recursive depth reached!": the trial of each group tells
            graph.build_dependency(
                module, model.example(2), forward_fn=forward, unwrapped_parameters=[], verbose=False
            )
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise StageFailed(f"the model cannot be traced: {type(error).__name__}: {first}") from error
    _correct_splits(graph)
    return graph


def _correct_splits(graph: Any) -> None:
    """Say which part of a split each of its readers gets.

    Torch-Pruning 1.6 numbers the parts in the order in which it meets their readers, from the model's output
    backwards; autograd's edges know the part's own number.
    """
    for node in graph.module2node.values():
        if node.type != torch_pruning.ops.OPTYPE.SPLIT or node.module.split_sizes is None:
            continue
        size = getattr(node.grad_fn, "_saved_split_size", None)  # of split and chunk; split_sizes names each
        forward = node.dependencies[len(node.inputs) :]
        met: Counter[Any] = Counter()
        for edge, reader in zip(forward, node.outputs, strict=True):
            parts = [nr for f, nr in reader.grad_fn.next_functions if f is node.grad_fn]
            backward = [d for d, i in zip(reader.dependencies, reader.inputs, strict=False) if i is node]
            if met[reader] >= len(parts) or met[reader] >= len(backward):
                continue  # a module that is used twice has one node for both; the trial of its group tells
            number = parts[met[reader]]
            sizes = node.module.split_sizes
            start = number * size if size is not None else sum(sizes[:number])
            part = [start, start + (size if size is not None else sizes[number])]
            for towards_split, dependency in ((False, edge), (True, backward[met[reader]])):
                dependency.index_mapping[0] = _SplitIndexMapping(offset=part, reverse=towards_split)
            met[reader] += 1


def is_output(node: Any) -> bool:
    return bool(node.type == torch_pruning.ops.OPTYPE.OUTPUT)


def is_bare_parameter(node: Any) -> bool:
    return bool(node.type == torch_pruning.ops.OPTYPE.PARAMETER)


def is_input_side(graph: Any, handler: Any) -> bool:
    """Whether a dependency concerns what a layer reads, and not what it gives."""
    return bool(graph.is_in_channel_pruning_fn(handler) and not graph.is_out_channel_pruning_fn(handler))
