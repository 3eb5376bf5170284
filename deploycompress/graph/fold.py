"""Folds batch normalisation into the convolution or linear layer before it, ahead of the export.

We do it ourselves because exporters have got it wrong (pytorch#166797: a bias of the wrong shape), and
because a quantizer wants the folded weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from deploycompress.contracts import Model

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FOLDED_INTO = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
TOLERANCE = 1e-4  # of the largest output, in float32


def fold_batchnorm(
    module: nn.Module, model: Model, inputs: Mapping[str, Tensor]
) -> tuple[nn.Module, list[str]]:
    """A folded copy of ``module`` in evaluation mode, and the names of the normalisations that are gone.

    Which layer feeds which is seen while ``module`` runs on ``inputs``. The copy is compared with the
    original; where they differ, an unfolded copy is given back with an empty list.
    """
    original = copy.deepcopy(module).eval().requires_grad_(False)
    folded = copy.deepcopy(original)
    with torch.no_grad():
        pairs = _pairs(folded, model, inputs)
        for layer, bn in pairs:
            _fold(folded, layer, bn)
        before, after = model.call(original, inputs), model.call(folded, inputs)
    if all(_close(before[name], after[name]) for name in before):
        return folded, [bn for _, bn in pairs]
    return original, []


def _close(expected: Tensor, found: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    scale = max(float(expected.abs().max()), 1e-12) if expected.numel() else 1.0
    return float((expected - found).abs().max()) <= TOLERANCE * scale if expected.numel() else True


# ---------------------------------------------------------------- who feeds whom


class _Uses(TorchFunctionMode):
    """Counts, for each watched tensor, the calls that made a tensor out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # held, so that no other tensor gets the same id
        self.count: dict[int, int] = {}

    def watch(self, tensor: Tensor) -> None:
        self.watched[id(tensor)] = tensor
        self.count[id(tensor)] = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)):  # not a size, a type or a device
            for argument in torch.utils._pytree.tree_leaves((args, kwargs)):
                if id(argument) in self.count:
                    self.count[id(argument)] += 1
        return result


def _pairs(module: nn.Module, model: Model, inputs: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """(layer, normalisation) where the layer ran once, and its output went to the normalisation alone."""
    uses = _Uses()
    made_by: dict[int, str] = {}
    calls: dict[str, int] = {}
    found: list[tuple[str, str, int]] = []
    hooks = []

    def after_layer(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            made_by[id(output)] = name
            uses.watch(output)

        return hook

    def before_normalisation(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if arguments and id(arguments[0]) in made_by:
                found.append((made_by[id(arguments[0])], name, id(arguments[0])))

        return hook

    for name, layer in module.named_modules(remove_duplicate=False):
        if type(layer) in FOLDED_INTO and not parametrize.is_parametrized(layer):
            hooks.append(layer.register_forward_hook(after_layer(name)))
        elif _is_batchnorm(layer):
            hooks.append(layer.register_forward_pre_hook(before_normalisation(name)))
    try:
        with uses:
            outputs = model.call(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    returned = {id(output) for output in outputs.values()}
    return [
        (layer, bn)
        for layer, bn, tensor in found
        if calls[layer] == calls[bn] == uses.count[tensor] == 1 and tensor not in returned
    ]


def _is_batchnorm(layer: nn.Module) -> bool:
    """A normalisation with fixed statistics; timm's has dropout and activation in the same module."""
    if not isinstance(layer, BATCHNORMS) or layer.running_mean is None:
        return False
    return type(layer) in BATCHNORMS or [name for name, _ in layer.named_children()] == ["drop", "act"]


# ---------------------------------------------------------------- the arithmetic


def _fold(module: nn.Module, layer_name: str, bn_name: str) -> None:
    """W' = W g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps) + beta, computed in float64."""
    layer, bn = module.get_submodule(layer_name), module.get_submodule(bn_name)
    assert isinstance(bn, nn.modules.batchnorm._NormBase)
    assert isinstance(layer, FOLDED_INTO) and bn.running_mean is not None and bn.running_var is not None
    weight = layer.weight.double()
    width = bn.num_features
    bias = torch.zeros(width) if layer.bias is None else layer.bias
    gain = torch.ones(width) if bn.weight is None else bn.weight
    offset = torch.zeros(width) if bn.bias is None else bn.bias
    scale = gain.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    layer.weight = nn.Parameter(_scaled(layer, weight, scale).to(layer.weight.dtype), requires_grad=False)
    moved = (bias.double() - bn.running_mean.double()) * scale + offset.double()
    layer.bias = nn.Parameter(moved.to(layer.weight.dtype), requires_grad=False)
    parent = module.get_submodule(bn_name.rpartition(".")[0])
    children = list(bn.children())
    setattr(parent, bn_name.rpartition(".")[2], nn.Sequential(*children) if children else nn.Identity())


def _scaled(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """The weight with each output channel scaled; transposed convolutions keep them in dimension 1, by group."""
    if not isinstance(layer, TRANSPOSED):
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    groups, kernel = layer.groups, [1] * (weight.dim() - 2)
    by_group = weight.reshape(groups, -1, *weight.shape[1:]) * scale.reshape(groups, 1, -1, *kernel)
    return by_group.reshape(weight.shape)
