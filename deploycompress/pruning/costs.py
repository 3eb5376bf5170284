"""What a model costs as a function of its groups' widths: MACs, parameters, bytes and channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from deploycompress.contracts import Model
from deploycompress.model.architecture import named_tensors
from deploycompress.pruning.groups import ChannelGroup
from deploycompress.pruning.layers import Axis, Layer, describe
from deploycompress.pruning.layers import tensor as bare_tensor

Cost = Mapping[str, float]  # "macs", "params", "size" (bytes), "channels"; other costs may join


class Costs(Protocol):
    """What allocations ask: any number of figures, by name, each of which never grows when a width falls."""

    def at(self, widths: Mapping[str, int]) -> Cost:
        """The cost when group ``id`` has ``widths[id]`` channels."""
        ...


@dataclass
class _Terms:
    """Tensors whose size is ``coefficient`` times the widths of at most two axes; what one element costs."""

    coefficient: list[float] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    per_element: list[tuple[float, float, float]] = field(default_factory=list)  # MACs, parameters, bytes


class WidthCosts:
    """Implements ``Costs`` exactly, from one measured pass of the unpruned model at batch size 1.

    MACs are multiply-accumulates of convolutions and linear layers; what others multiply (attention products)
    is a constant. ``size`` counts the bytes of parameters and buffers, ``channels`` those of all groups.
    """

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup], model: Model) -> None:
        self._ids = [group.id for group in groups]
        self._widths = np.array([group.width for group in groups], dtype=np.float64)
        passes, other_macs = _passes(module, model)
        self._constant = np.array([other_macs, 0.0, 0.0])
        # Axis 0 is "no axis": its width is always one.
        self._axis_width: list[float] = [1.0]
        self._per_channel: list[np.ndarray] = [np.zeros(len(groups))]
        terms = _Terms()
        self._add_tensors(module, groups, passes, terms)
        self._coefficient = np.array(terms.coefficient)
        self._first, self._second = np.array(terms.first), np.array(terms.second)
        self._per_element = np.array(terms.per_element).reshape(-1, 3)
        self._full_axes = np.array(self._axis_width)
        self._share = np.array(self._per_channel).reshape(len(self._axis_width), len(groups))
        self.full: Cost = self.at({group.id: group.width for group in groups})

    def at(self, widths: Mapping[str, int]) -> Cost:
        kept = np.array([widths[id] for id in self._ids], dtype=np.float64)
        axes = self._full_axes - self._share @ (self._widths - kept)
        elements = self._coefficient * axes[self._first] * axes[self._second]
        macs, params, size = self._constant + elements @ self._per_element
        return {
            "macs": float(round(macs)),
            "params": float(round(params)),
            "size": float(round(size)),
            "channels": float(kept.sum()),
        }

    def _add_tensors(
        self, module: nn.Module, groups: Sequence[ChannelGroup], passes: Mapping[str, float], terms: _Terms
    ) -> None:
        parts: dict[str, Layer | str] = {name: describe(part) for name, part in module.named_modules()}
        bare = {m.layer: m.dim for g in groups for m in g.members if m.dim is not None}
        axes = self._axes(parts, bare, module, groups)
        seen: set[int] = set()
        for name, tensor, kind in named_tensors(module):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            owner, _, leaf = name.rpartition(".")
            layer = parts[owner]
            dims: Mapping[Axis, int] = layer.tensors.get(leaf, {}) if isinstance(layer, Layer) else {}
            used = [axes[owner, axis] for axis in dims if (owner, axis) in axes]
            if name in bare:
                used = [axes[name, "out"]]
            widths = [self._axis_width[i] for i in used]
            terms.coefficient.append(tensor.numel() / prod(widths) if used else float(tensor.numel()))
            terms.first.append(used[0] if used else 0)
            terms.second.append(used[1] if len(used) > 1 else 0)
            macs = passes.get(owner, 0.0) if leaf == "weight" else 0.0
            terms.per_element.append((macs, float(kind == "parameter"), float(tensor.element_size())))

    def _axes(
        self,
        parts: Mapping[str, Layer | str],
        bare: Mapping[str, int],
        module: nn.Module,
        groups: Sequence[ChannelGroup],
    ) -> dict[tuple[str, Axis], int]:
        """Number every axis that a group reaches, and note how much of it one channel of each group is."""
        found: dict[tuple[str, Axis], int] = {}
        for g, group in enumerate(groups):
            for member in group.members:
                place = (member.layer, member.axis)
                if place not in found:
                    layer = parts.get(member.layer)
                    if member.layer in bare:
                        width = bare_tensor(module, member.layer).shape[bare[member.layer]]
                    else:
                        assert isinstance(layer, Layer)
                        width = layer.widths[member.axis]
                    found[place] = len(self._axis_width)
                    self._axis_width.append(float(width))
                    self._per_channel.append(np.zeros(len(groups)))
                self._per_channel[found[place]][g] += len(member.positions) / group.width
        return found


def count(module: nn.Module, model: Model) -> Cost:
    """MACs, parameters and bytes of ``module`` as it is."""
    full = WidthCosts(module, (), model).full
    return {name: value for name, value in full.items() if name != "channels"}


# ---------------------------------------------------------------- the measured pass


def _passes(module: nn.Module, model: Model) -> tuple[dict[str, float], float]:
    """Layer -> how often each element of its weight is multiplied for one sample; and the MACs of all else."""
    found: Counter[str] = Counter()
    macs: Counter[str] = Counter()

    def counting(name: str, part: _ConvNd | nn.Linear) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            if isinstance(part, _ConvNd):
                spatial = arguments[0] if isinstance(part, _ConvTransposeNd) else output
                positions = prod(spatial.shape[-(part.weight.ndim - 2) :]) * _batch(spatial, part)
            else:
                positions = output.numel() // max(1, output.shape[-1])
            found[name] += positions
            macs[name] += positions * part.weight.numel()

        return hook

    hooks = [
        part.register_forward_hook(counting(name, part))
        for name, part in module.named_modules()
        if isinstance(part, (_ConvNd, nn.Linear))
    ]
    inputs = model.example(1)
    batch = next(iter(inputs.values())).shape[0]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    # With gradients, so that fused kernels that the counter does not know (attention) are not taken.
    counter = FlopCounterMode(display=False)
    training = module.training
    module.eval()
    try:
        with torch.enable_grad(), counter:
            model.call(module, {name: tensor.to(device) for name, tensor in inputs.items()})
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    other = max(0.0, counter.get_total_flops() / 2 - sum(macs.values()))
    return {name: n / batch for name, n in found.items()}, other / batch


def _batch(tensor: Tensor, part: _ConvNd) -> int:
    """Samples of a convolution's tensor; one where it has no batch dimension."""
    return int(tensor.shape[0]) if tensor.ndim == part.weight.ndim else 1
