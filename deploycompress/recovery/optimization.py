"""Which parameters are trained, and by which optimiser."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploycompress.config.wording import nearest
from deploycompress.errors import ConfigError
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.state import Training

NORMS = "norms"  # a word among the patterns: parameters of normalisation layers, whatever they are called
_NORM_TYPES = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)


@contextmanager
def only(net: nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Inside, only the parameters that fit one of ``patterns`` are trained; without one, all that were before.

    Raises ConfigError for a pattern that fits none.
    """
    if not patterns:
        yield
        return
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    wanted = chosen(net, patterns)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in wanted)
    try:
        yield
    finally:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(before[name])


def chosen(net: nn.Module, patterns: Sequence[str]) -> set[str]:
    """The names of the parameters that fit one of ``patterns``, such as ``head.*`` or ``norms``."""
    names = [name for name, _ in net.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        fits = _norms(net) if pattern == NORMS else set(fnmatch.filter(names, pattern))
        if not fits:
            close = nearest(pattern, names)
            question = f"; did you mean {close}?" if close else ""
            raise ConfigError(
                f"trainable: no parameter is called {pattern!r}{question} Expected a pattern such as "
                f"{names[-1].rpartition('.')[0] or names[-1]}.*, or {NORMS}"
            )
        found |= fits
    return found


def _norms(net: nn.Module) -> set[str]:
    own = {id(p) for m in net.modules() if isinstance(m, _NORM_TYPES) for p in m.parameters()}
    return {name for name, parameter in net.named_parameters() if id(parameter) in own}


def training_mode(training: Training, patterns: Sequence[str]) -> None:
    """Everything in training mode; a batch normalisation that ``patterns`` leave out keeps its statistics."""
    training.net.train()
    if training.beside is not None:
        training.beside.train()
    for norm in fixed_norms(training.net, patterns):
        norm.eval()


def fixed_norms(net: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The batch normalisations that ``patterns`` leave out; none without a pattern."""
    if not patterns:
        return []
    wanted = chosen(net, patterns)
    trained = {id(parameter) for name, parameter in net.named_parameters() if name in wanted}
    norms = (module for module in net.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if trained.isdisjoint(map(id, norm.parameters()))]


def make_optimizer(modules: Sequence[nn.Module], recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, not on norms and biases.

    He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", section 3.1.
    Raises ConfigError when nothing is left to train.
    """
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("there is no parameter to train: the model has none, or all of them are frozen")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, rate)
