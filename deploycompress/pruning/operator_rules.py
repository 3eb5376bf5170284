"""What each operator does to the labels of the tensors that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from deploycompress.pruning.labels import FREE, Layer, is_free, resized, tidy, varying
from deploycompress.pruning.movements import CREATIONS, MOVES, REDUCTIONS, SUMS, reduced_dims
from deploycompress.pruning.places import Places
from deploycompress.pruning.products import product

PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "convolution"})


class Operators:
    """The labels of all tensors that are alive, and the rules by which operators pass them on."""

    def __init__(self, module: nn.Module, places: Places) -> None:
        self.ties, self.places = places.ties, places
        self.known: Any = WeakTensorKeyDictionary()  # tensor -> its layers
        # Those computed from parameters and buffers alone -> whether their elements were moved and no more.
        self.own: Any = WeakTensorKeyDictionary()
        self.bare: dict[int, tuple[str, Tensor]] = {id(t): (name, t) for name, t in module.named_parameters()}
        self.bare |= {id(t): (name, t) for name, t in module.named_buffers() if t.is_floating_point()}

    def layers(self, tensor: Any) -> list[Layer]:
        if not isinstance(tensor, Tensor):
            return []
        if tensor not in self.known and id(tensor) in self.bare:
            self.own[tensor] = True
            self.set(tensor, self.places.of_tensor(*self.bare[id(tensor)]))
        found: list[Layer] = self.known.get(tensor, [])
        return found

    def concerns(self, tensors: Sequence[Tensor]) -> bool:
        """Whether an operator that reads these has anything to do with labels."""
        return any([bool(self.layers(t)) or t in self.own for t in tensors])

    def set(self, tensor: Any, layers: Sequence[Layer]) -> None:
        if isinstance(tensor, Tensor):
            self.known[tensor] = [tidied for layer in layers if not is_free(tidied := tidy(layer))]

    def follow(
        self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Any
    ) -> None:
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if all(t in self.own for t in tensors if t.ndim):
            moved = name in MOVES and all(self.own.get(t, False) for t in tensors)
            self.own.update(dict.fromkeys(outputs, moved))
        if name in CREATIONS:
            return
        if name in MOVES:
            self._move(func, args, kwargs, tensors, result)
        elif name in REDUCTIONS:
            self._reduce(name, args, tensors[0], outputs)
        elif name in PRODUCTS or "attention" in name:
            product(self, name, args, tensors, outputs)
        elif len(outputs) == 1 and _broadcasts(tensors, outputs[0]):
            self.set(outputs[0], self.together(tensors, outputs[0].shape))
        elif outputs and all(o.ndim == tensors[0].ndim for o in outputs):
            for output in outputs:  # a pooling, an interpolation: some dimensions change, the others stay
                self.set(output, self._resize(name, tensors[0], output))
        else:
            for tensor in tensors:
                self.freeze(tensor, f"the operator {name} is not understood")

    def freeze(self, tensor: Tensor | None, reason: str) -> None:
        for layer in self.layers(tensor):
            self.ties.freeze(layer, reason)

    def _move(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Any) -> None:
        """What moves elements moves their labels."""
        stacks = _aligned([self.layers(t) for t in tensors])
        if func.overloadpacket.__name__ == "cat":
            stacks = [self._one_after_another(stack, tensors, *args[1:], **kwargs) for stack in stacks]
        results: list[list[Tensor]] = []
        for stack in stacks:
            replaced = {id(t): layer for t, layer in zip(tensors, stack, strict=True)}

            def labels_of(tensor: Tensor, replaced: dict[int, Layer | None] = replaced) -> Tensor:
                layer = replaced.get(id(tensor))
                if layer is not None:
                    return layer
                return (
                    torch.zeros((), dtype=torch.int64).expand(tensor.shape)
                    if tensor.is_floating_point()
                    else tensor
                )

            moved_args, moved_kwargs = tree_map_only(Tensor, labels_of, (args, kwargs))
            moved = MOVES[func.overloadpacket.__name__](func, *moved_args, **moved_kwargs)
            results.append([t for t in tree_leaves(moved) if isinstance(t, Tensor)])
        for i, output in enumerate(t for t in tree_leaves(result) if isinstance(t, Tensor)):
            self.set(output, [moved[i] for moved in results])

    def _one_after_another(
        self, stack: list[Layer | None], tensors: list[Tensor], dim: int = 0
    ) -> list[Layer | None]:
        """Tokens before others have the same channels; what has no label follows those that have."""
        known = [layer for layer in stack if layer is not None]
        if any(dim % layer.ndim in varying(layer) for layer in known):
            return stack
        for other in known[1:]:
            self.ties.tie(resized(known[0], other.shape), other)
        return [resized(known[0], t.shape) if t.ndim == known[0].ndim else None for t in tensors]

    def _reduce(self, name: str, args: Any, tensor: Tensor, outputs: list[Tensor]) -> None:
        dims, keepdim = reduced_dims(name, args, tensor, outputs[0])
        layers = []
        for layer in self.layers(tensor):
            if varying(layer) <= dims:
                if name not in SUMS:
                    self.ties.freeze(layer, f"the operator {name} takes them together")
                continue
            gathered = self.ties.gather_over(layer, dims)
            if not keepdim:
                for dim in sorted(dims, reverse=True):
                    gathered = gathered.squeeze(dim)
            layers.append(gathered)
        for output in outputs:
            self.set(output, [resized(layer, output.shape) for layer in layers])

    def together(self, tensors: list[Tensor], shape: torch.Size) -> list[Layer]:
        """Element by element: labels that vary along the same dimensions meet.

        A bare parameter has labels along every dimension; those that meet nothing here are nobody's channels.
        """
        found: list[Layer] = []
        alone = all(t in self.own for t in tensors if t.ndim)
        for tensor in sorted(tensors, key=lambda t: t in self.own):
            for layer in self.layers(tensor):
                spread = (
                    layer.view((1,) * (len(shape) - layer.ndim) + layer.shape)
                    if layer.ndim < len(shape)
                    else layer
                )
                spread = spread.expand(shape)
                dims = varying(spread)
                # Two that vary along nothing (a gate of one channel) would pile up along a residual stream.
                same = next(
                    (i for i, o in enumerate(found) if (varying(o) & dims if dims else not varying(o))), None
                )
                if same is None and (alone or tensor not in self.own):
                    found.append(spread)
                elif same is not None:
                    self.ties.tie(found[same], spread)
                    if bool((found[same] == FREE).any()):
                        found[same] = tidy(torch.where(found[same] == FREE, spread, found[same]))
        return found

    def _resize(self, name: str, tensor: Tensor, output: Tensor) -> list[Layer]:
        found = []
        for layer in self.layers(tensor):
            dims = varying(layer)
            if any(tensor.shape[d] != output.shape[d] for d in dims):
                self.ties.freeze(layer, f"the operator {name} is not understood")
            else:
                found.append(resized(layer, output.shape))
        return found


def _broadcasts(tensors: list[Tensor], output: Tensor) -> bool:
    try:
        shape = np.broadcast_shapes(*(tuple(t.shape) for t in tensors))
    except ValueError:
        return False
    return shape == tuple(output.shape)


def _aligned(layers: list[list[Layer]]) -> list[list[Layer | None]]:
    """Stacks of one layer of each tensor (None where it has none): those that vary along the same dimensions."""
    stacks: list[list[Layer | None]] = []
    for i, own in enumerate(layers):
        for layer in own:
            for stack in stacks:
                kinds = [varying(other) for other in stack if other is not None]
                if stack[i] is None and any(k & varying(layer) for k in kinds):
                    stack[i] = layer
                    break
            else:
                fresh: list[Layer | None] = [None] * len(layers)
                fresh[i] = layer
                stacks.append(fresh)
    return stacks
